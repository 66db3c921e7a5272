"""How long do rendering and test-time optimisation take for a held-out image, and what does it help to optimise
several at once?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/evaluation.py --output benchmarks/results/evaluation.json

Seconds an image by the method's own settings, medians of rounds in which all variants take turns; without a GPU they
are of CPU time (use one thread), which other processes of a shared machine disturb less. The field is not trained: its
values do not change what there is to compute.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import training
import tyro
from record import CLOCK, Output, memory_mb, show, take_turns, write_record


@dataclass
class Args(Output):
    """Settings."""

    size: training.SizeName = "small"
    """`small`: hashpose-small, 100x100; `paper`: hashpose-blender, 400x400; `tiny` to try the script."""
    at_once: tuple[int, ...] = (1, 4, 8)
    """Numbers of held-out cameras to optimise at once."""
    chunks: tuple[int, ...] = (512, 4096)
    """Rays to render at once, beside as many as the model chooses by memory."""
    rounds: int = 3
    """Turns."""


def main(args: Args) -> None:
    """Measures, prints, writes."""
    from hashpose_ns.photometry.align import optimized_held_out_poses
    from hashpose_ns.photometry.pixels import evenly_spaced, posed_cameras

    size = training.SIZES[args.size]
    with tempfile.TemporaryDirectory() as temporary:
        # nerfstudio's format holds a tenth of the images out
        size = dataclasses.replace(size, views=max(size.views, 80))
        data = training.make_scene(Path(temporary) / "scene", size.views, size.resolution)
        settings = training.sample_settings(size.method, size.samples)
        if args.size == "tiny":
            settings.update({"pipeline.tto_steps": 2, "pipeline.tto_rays": 32})
        pipeline = training.make_trainer(size.method, data, Path(temporary) / "out", settings).pipeline
        pipeline.model.update_to_step(training.START_STEP)
        pipeline.eval()
        scene, config = pipeline.scene, pipeline.config
        poses = scene.aligned_held_out_poses()
        indices = evenly_spaced(len(poses), max(args.at_once))

        def render(chunk: int) -> None:
            pipeline.model.config.eval_num_rays_per_chunk = chunk
            for index in indices:
                camera = posed_cameras(scene.held_out, poses[index : index + 1], scene.device, [index])
                pipeline.model.get_outputs_for_camera(camera)

        def optimize(count: int) -> None:
            config.tto_images = count
            list(optimized_held_out_poses(pipeline.scene, indices, poses))

        variants: dict[str, Callable[[], Any]] = {
            f"rendering, {f'{chunk} rays' if chunk else 'as many rays as memory allows'} at once": partial(
                render, chunk
            )
            for chunk in (0, *args.chunks)
        }
        variants |= {f"test-time optimisation, {count} at once": partial(optimize, count) for count in args.at_once}
        times = take_turns(variants, args.rounds, warm_up=1)
        pipeline.model.config.eval_num_rays_per_chunk = 0
        rays_by_memory = pipeline.model.rays_per_chunk()
    seconds = {name: [each / 1000 / len(indices) for each in ms] for name, ms in times.items()}
    results = {name: {"seconds": statistics.median(each), "least": min(each)} for name, each in seconds.items()}
    title = f"Seconds an image of {size.resolution}x{size.resolution}, {torch.get_num_threads()} threads"
    show(title, [{"operation": name, **result} for name, result in results.items()])
    asked = {"tto_steps": config.tto_steps, "tto_rays": config.tto_rays, "images": len(indices)}
    asked |= {"rays_by_memory": rays_by_memory, "clock": CLOCK}
    write_record(args.output, size=args.size, **vars(size), **asked, results=results, memory_mb=memory_mb())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
