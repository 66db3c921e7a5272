"""`hashpose-demo`: the whole way on a small scene that comes with the package, by the commands a user would type."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List

from hashpose_ns.errors import exits_on_user_error
from hashpose_ns.stopping import run_in_session, stops_cleanly

DEMO_SCENE = Path(__file__).parent / "data" / "demo_chair"


@dataclass
class Demo:
    """Train hashpose on a small chair from perturbed poses, with the live viewer on. Then evaluate it, draw the cameras
    before, after and true, and export a COLMAP model."""

    output_dir: Path = Path("demo_output")
    """Output folder."""
    steps: int = 2500
    """Training steps."""
    noise: float = 0.15
    """Standard deviation of the twists that perturb the poses (BARF's protocol)."""
    seed: int = 0
    """Seed of the perturbation and of training."""
    viewer_port: int = 7007
    """Port of the live viewer, on this machine only; the next free one if it is taken."""

    def main(self) -> None:
        """Runs the demo."""
        from PIL import Image
        from rich.console import Console

        console = Console()
        output = self.output_dir.resolve()
        run = output / "chair" / "hashpose-object" / "demo"
        # An earlier demo's logs and checkpoints would mix with this one's.
        shutil.rmtree(run, ignore_errors=True)
        console.rule("[bold]1. Training: watch the cameras move")
        console.print(
            f"Open the viewer in a browser while it trains: http://127.0.0.1:{self.viewer_port}, or the address that "
            "training prints if that port is taken.",
            soft_wrap=True,
        )
        self._run(console, self.train_command(output))
        console.rule("[bold]2. Evaluation on held-out images")
        results_file, renders = output / "results.json", output / "renders"
        config = str(run / "config.yml")
        self._run(
            console,
            [
                "ns-eval",
                "--load-config",
                config,
                "--output-path",
                str(results_file),
                "--render-output-path",
                str(renders),
            ],
        )
        console.rule("[bold]3. Refined poses as a COLMAP model")
        colmap = output / "colmap"
        self._run(
            console,
            ["hashpose-export", "colmap", "--load-config", config, "--output-dir", str(colmap), "--overwrite", "True"],
        )
        results = json.loads(results_file.read_text())["results"]
        cameras, curve, picture = (
            output / "cameras.png",
            output / "pose_errors.png",
            output / "photograph_and_render.png",
        )
        self._figures(run, cameras, curve)
        with Image.open(sorted(renders.glob("eval_tto_img_*.png"))[0]) as image:
            image.resize((4 * image.width, 4 * image.height), Image.Resampling.BICUBIC).save(picture)
        console.rule("[bold]What came out")
        console.print(self._table(results))
        for name, path in {
            "cameras before, after and true": cameras,
            "errors over training": curve,
            "photograph (left) and render (right) of a held-out view": picture,
            "all renders": renders,
            "COLMAP model of the refined cameras": colmap,
            "the trained run": run,
        }.items():
            console.print(f"  {name}: {path}", soft_wrap=True)

    def train_command(self, output: Path) -> List[str]:
        """The ns-train command."""
        return [
            "ns-train", "hashpose-object",
            "--output-dir", str(output), "--experiment-name", "chair", "--timestamp", "demo",
            "--max-num-iterations", str(self.steps), "--machine.seed", str(self.seed),
            "--steps-per-eval-all-images", str(self.steps + 1), "--pipeline.eval-num-images", "4",
            "--viewer.websocket-host", "127.0.0.1", "--viewer.websocket-port", str(self.viewer_port),
            "--viewer.quit-on-train-completion", "True",
            "--pipeline.datamanager.initial-poses", "perturbed",
            "--pipeline.datamanager.perturbation.rotation", str(self.noise),
            "--pipeline.datamanager.perturbation.translation", str(self.noise),
            "--pipeline.datamanager.perturbation.seed", str(self.seed),
            "blender-data", "--data", str(DEMO_SCENE),
        ]  # fmt: skip

    @staticmethod
    def _run(console, command: List[str]) -> None:
        console.print("$ " + " ".join(command), style="dim", soft_wrap=True)
        # The commands that were installed beside this one, whatever PATH says. One thread: steps this small gain little
        # from more, and on a busy machine threads that wait for each other are many times slower.
        program = Path(sys.executable).parent / command[0]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONWARNINGS": "ignore"}
        code = run_in_session([str(program), *command[1:]], environment)
        if code != 0:
            console.print(f"[bold red]{command[0]} stopped with exit code {code}; its output is above.")
            sys.exit(1)

    @staticmethod
    def _figures(run: Path, cameras: Path, curve: Path) -> None:
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about how nerfstudio uses it
        from hashpose_ns.plotting.figures import plot_cameras, plot_pose_errors
        from hashpose_ns.runs.files import read_pose_log
        from hashpose_ns.runs.load import load_trained_pipeline

        optimizer = load_trained_pipeline(run / "config.yml").scene.poses
        plot_cameras(
            optimizer.initial_camera_to_worlds,
            optimizer.refined_camera_to_worlds(),
            optimizer.reference_camera_to_worlds,
            cameras,
        )
        plot_pose_errors({"chair": [read_pose_log(run)]}, curve)

    @staticmethod
    def _table(results: Dict[str, float]):
        from rich.table import Table

        table = Table(title="Poses of the training cameras, and quality of held-out views")
        for column, justify in (("", "left"), ("before", "right"), ("after", "right"), ("ratio", "right")):
            table.add_column(column, justify=justify)  # type: ignore
        for name, key, scale in (
            ("rotation error, mean, degrees", "rotation_deg_mean", 1.0),
            ("rotation error, worst, degrees", "rotation_deg_max", 1.0),
            ("translation x100 (BARF's metric)", "translation_mean", 100.0),
            ("camera centres x100", "center_mean", 100.0),
        ):
            before, after = (scale * results[f"pose_error_{when}_{key}"] for when in ("before", "after"))
            table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{before / after:.1f}x")
        table.add_row("PSNR, cameras aligned, dB", "", f"{results['psnr_aligned']:.2f}", "")
        table.add_row("PSNR, test-time optimised, dB", "", f"{results['psnr_tto']:.2f}", "")
        return table


@stops_cleanly
@exits_on_user_error
def entrypoint() -> None:
    """Entry point of `hashpose-demo`."""
    import tyro

    tyro.cli(Demo, prog=Path(sys.argv[0]).name).main()


if __name__ == "__main__":
    entrypoint()
