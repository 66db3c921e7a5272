"""How long does the decoder take, forward and backward, in which precision, compiled or not, and by tiny-cuda-nn?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/decoder.py --output benchmarks/results/decoder.json

The field's decoder alone, from random features of random samples to densities and colours, and the gradients of
parameters and features: 2 + 2 hidden layers, view directions encoded, 64 and 256 wide. Alternatives take turns; the
least of several times counts. tiny-cuda-nn's networks are half precision; where they are not installed the record says
so. nn.Linear computes in float32 or, by autocast, in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from record import CLOCK, Output, show, summary, take_turns, write_record

from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.field import DecoderConfig, HashPoseField, HashPoseFieldConfig
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig

SIZES = {"tiny": (8, 8), "small": (512, 32), "paper": (1024, 128)}
"""Rays and samples a ray."""


@dataclass
class Args(Output):
    """Settings."""

    size: Literal["tiny", "small", "paper"] = "small"
    """512 rays x 32 samples, 1024 x 128, or `tiny` to try it out."""
    widths: tuple[int, ...] = (64, 256)
    """Widths of the hidden layers."""
    rounds: int = 15
    """Turns of every alternative."""
    compiled: bool = True
    """Whether to compile as well, which takes a minute on a CPU."""


def make_field(width: int, implementation: str) -> HashPoseField:
    """The field with a small grid: only its decoder is measured."""
    config = HashPoseFieldConfig(
        encoding=HashEncodingConfig(log2_hashmap_size=4),
        decoder=DecoderConfig(width=width, implementation=implementation),  # type: ignore
    )
    curriculum = Curriculum(CurriculumConfig(mode="none"), config.num_levels, total_steps=1)
    return config.setup(warp="none", aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]), num_images=2, curriculum=curriculum)


def make_step(field: HashPoseField, shape: tuple[int, int], bfloat16: bool, compiled: bool) -> Callable[[], Any]:
    """Forward and backward pass of the decoder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    field = field.to(device)
    features = torch.randn(*shape, field.encoding.out_dim, device=device, requires_grad=True)
    inside = torch.ones(shape, dtype=torch.bool, device=device)
    directions = torch.nn.functional.normalize(torch.randn(shape[0], 1, 3, device=device), dim=-1)
    parameters = list(field.decoder_parameters())

    def decode(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        density, geometry = field.decode_density(features, inside, bfloat16)
        return density, field.decode_color(geometry, directions, None, True, bfloat16)

    if compiled:
        decode = torch.compile(decode, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else "default")
    grads = torch.randn(*shape, 1, device=device), torch.randn(*shape, 3, device=device)
    return lambda: torch.autograd.grad(decode(features), [features, *parameters], grads)


def alternatives(width: int, args: Args) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """What is compared, and why something is not."""
    steps, missing = {}, {}
    variants = [("float32", "torch", False, False), ("bfloat16", "torch", True, False)]
    variants += [("bfloat16, compiled", "torch", True, True)] if args.compiled else []
    for name, implementation, bfloat16, compiled in (*variants, ("tiny-cuda-nn", "tcnn", False, False)):
        try:
            step = make_step(make_field(width, implementation), SIZES[args.size], bfloat16, compiled)
            step()
            steps[name] = step
        except HashPoseError as error:
            missing[name] = str(error).split(" (")[0]
        except Exception as error:  # of a compiler, or of tiny-cuda-nn
            missing[name] = f"{type(error).__name__}: {one_line(error)[:200]}"
    return steps, missing


def main(args: Args) -> None:
    """Measures, prints, writes."""
    results, missing = [], {}
    for width in args.widths:
        torch.manual_seed(0)
        steps, missing = alternatives(width, args)
        times = take_turns(steps, args.rounds)
        results += [{"width": width, "decoder": name, **summary(ms)} for name, ms in times.items()]
    rays, samples = SIZES[args.size]
    show(f"Decoder, forward + backward, {rays * samples} samples, {CLOCK}", results)
    for name, reason in missing.items():
        print(f"Not measured: {name}. {reason}")
    content = {"clock": CLOCK, "rays": rays, "samples": samples, "threads": torch.get_num_threads()}
    write_record(args.output, **content, results=results, not_measured=missing)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
