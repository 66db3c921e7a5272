"""What the live viewer's pose panel costs training on a CPU while a browser is connected; medians of several rounds.

    OMP_NUM_THREADS=1 python benchmarks/viewer_cost.py --output benchmarks/results/viewer_cost.json

hashpose-small trains on a hundred cameras (copies of the packaged chair's) in this process; a client in another one
takes in everything the viewer sends. CPU time is read per thread: the panel's own, viser's that sends, and training's.
nerfstudio's own rendering for the browser is switched off, so that sending is the panel's alone. Shares are of the wall
time: the panel paces itself by the clock, so that on a busy machine, where a step takes longer, they stay the same.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import training
import tyro
from record import Output, show, write_record


@dataclass
class Args(Output):
    """Settings of the benchmark."""

    cameras: int = 100
    """Number of training cameras."""
    rounds: int = 6
    """How often to measure, with the panel and without in turns."""
    seconds: float = 10.0
    """How long to measure each time."""
    listen: int | None = None
    """Used by the benchmark itself: be the client of this port."""


def listen(port: int) -> None:
    """A client that takes in everything."""
    import msgspec
    import websockets

    camera = dict(wxyz=[1.0, 0, 0, 0], position=[5.0, 5, 5], fov=0.8, aspect=1.0, look_at=[0.0, 0, 0])

    async def run() -> None:
        async with websockets.connect(f"ws://127.0.0.1:{port}", max_size=None, open_timeout=60) as socket:
            await socket.send(
                msgspec.msgpack.encode({"type": "ViewerCameraMessage", **camera, "up_direction": [0.0, 0, 1]})
            )
            async for _ in socket:
                pass

    asyncio.run(run())


def cpu_seconds() -> dict[int, float]:
    """CPU time of each thread of this process."""
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        seconds[int(task.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return seconds


def compare(args: Args, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Trains, and measures without the panel and with it."""
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
    from nerfstudio.scripts.train import _set_random_seed

    arguments = [
        *("hashpose-small", "--output-dir", folder / "out", "--max-num-iterations", 1_000_000, "--vis", "viewer"),
        *("--viewer.websocket-host", "127.0.0.1", "--viewer.quit-on-train-completion", True),
        *("--logging.local-writer.enable", False, "--pipeline.held-out-rays", 0, "--steps-per-pose-log", 1_000_000),
        *("--guard.mode", "off"),  # it would judge after the last step
        *("--pipeline.model.camera-optimizer.start", 0, "--pipeline.model.camera-optimizer.warmup", 0),
        *("--pipeline.datamanager.initial-poses", "perturbed", "--pipeline.model.background-color", "white"),
        *("--pipeline.model.scene", "none", "--pipeline.model.sampler", "uniform"),
        *("--pipeline.model.near-plane", 2, "--pipeline.model.far-plane", 6),
        *("blender-data", "--data", training.make_scene(folder / "scene", args.cameras, resolution=100)),
    ]
    config = tyro.cli(AnnotatedBaseConfigUnion, args=[str(argument) for argument in arguments])
    _set_random_seed(0)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    viewer, live = trainer.viewer_state, trainer.pipeline.pose_panel.live
    thread = threading.Thread(target=trainer.train)
    thread.start()

    def measure() -> dict[str, float]:
        begin, steps, cpu = time.monotonic(), trainer.step, cpu_seconds()
        time.sleep(args.seconds)
        wall, steps = time.monotonic() - begin, trainer.step - steps
        spent = {thread: now - cpu.get(thread, 0.0) for thread, now in cpu_seconds().items()}
        own, train = spent[live._thread.native_id], spent[thread.native_id]
        send = sum(spent.values()) - own - train
        return {
            "ms_per_step": 1000 * wall / steps,
            "training_cpu_ms_per_step": 1000 * train / steps,
            "drawing_share": own / wall,
            "sending_share": send / wall,
        }

    while trainer.step < 100:
        time.sleep(0.1)
    client = subprocess.Popen([sys.executable, __file__, "--listen", str(viewer.viser_server.get_port())])
    while not viewer.viser_server.get_clients():
        time.sleep(0.1)
    viewer.update_scene = lambda *args, **kwargs: None
    for machine in viewer.render_statemachines.values():
        machine.running = False
    time.sleep(15.0)  # imports, plotly's script, the first drawing
    update, records = live._update, {True: [], False: []}
    for _ in range(args.rounds):
        for shown in (True, False):  # in turns, so that a busy machine is busy for both
            live._update = update if shown else lambda: 0
            time.sleep(1.0)
            records[shown].append(measure())
    client.kill()
    trainer.stop_training = True
    thread.join()
    return tuple(
        {key: statistics.median(record[key] for record in records[shown]) for key in records[shown][0]}
        for shown in (False, True)
    )


def main(args: Args) -> None:
    """Measures, prints, writes."""
    if args.listen is not None:
        return listen(args.listen)
    with tempfile.TemporaryDirectory() as folder:
        alone, watched = compare(args, Path(folder))
    share = watched["drawing_share"] + watched["sending_share"] - alone["sending_share"]
    show("Medians", [{"panel": name, **record} for name, record in (("hidden", alone), ("shown", watched))])
    print(f"The panel takes {100 * share:.2f} % of the time with {args.cameras} cameras.")
    asked = {"cameras": args.cameras, "rounds": args.rounds, "seconds": args.seconds}
    write_record(args.output, **asked, share=share, without_panel=alone, with_panel=watched)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
