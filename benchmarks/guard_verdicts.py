"""How often does the guard say "helped" of poses that became worse?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/guard_verdicts.py --data DATA --work WORK \
        --output benchmarks/results/guard_verdicts.json

Short trainings whose true poses are known, most of them set up to fail: stopped early, too few rays, wrong rates, wrong
intrinsics, photographs paired with wrong poses, objects without texture. Each is judged at some of its steps, and the
verdict stands beside the true errors before and after. What the judging fields found is kept in `--work`, a file for
each verdict, so that a run that was interrupted goes on, and another rule can be tried without training anew. A figure
goes beside the JSON file.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from record import Output, show, write_record
from training import RAYS, advance, set_value

from hashpose_ns.atomic import whole_file

OBJECTS = {"chair": "chair_400", "lego": "lego_400"}
CAPTURES = {"fox": ("fox_270", 0.2), "fern": ("fern_480", 0.15), "flower": ("flower_504", 0.2)}
"""Folder, and the factor on the images' size."""
VIEWS, OBJECT_SIZE = 20, 80
"""Images of an object, and their height and width."""
FRACTIONS = {"fox": 0.44, "flower": 0.6}
"""Of a capture's images that are trained on, where there are many."""
JUDGE_RAYS = 256
"""Rays a step of the judging fields: half of the default, as images are this small."""
BEYOND_NOISE = 1.05
"""Factor from which a mean error became larger or smaller; and larger by 0.1 degrees, or 0.5 % of the cameras' mean
distance from their middle."""
POSE_RATE = "optimizers.camera_opt.optimizer.lr"
SMALL = {
    **{"guard.mode": "off", "matches.start": "off", RAYS: 256},
    **{"pipeline.model.num_samples": 12, "pipeline.model.num_importance_samples": 12},
}
"""Settings of all runs."""


@dataclass(frozen=True)
class Case:
    """A training, and when it is judged."""

    kind: str
    """What is done to it."""
    scene: str
    """Which images."""
    noise: float
    """Standard deviation of BARF's noise on the true poses."""
    steps: int
    """Length of training."""
    judged: tuple[int, ...]
    """Steps after which the guard judges."""
    seed: int = 0
    """Of noise, rays and field."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Changed settings, dotted path -> value."""
    shuffled: float = 0.0
    """Fraction of the cameras that exchange their starts."""
    focal: float = 1.0
    """Factor on the focal length."""
    thrown: int = 0
    """Cameras that are put where another one is, before the guard judges."""
    grey: bool = False
    """Whether an object's colours are taken away: a silhouette on white."""

    @property
    def name(self) -> str:
        """Of its files."""
        kind = self.kind.replace(" ", "-")
        return f"{self.scene}_{kind}_{self.noise:g}_{self.steps}_{self.seed}"


def cases(draw: int = 0) -> list[Case]:
    """All of them, with seeds of their own in each draw."""
    high = {POSE_RATE: 5e-2}
    few = {RAYS: 48}
    found = []
    for scene in OBJECTS:
        found += [
            *(Case("short", scene, 0.15, 100, (100,), seed) for seed in range(2)),
            Case("short", scene, 0.3, 150, (150,)),
            Case("stopped", scene, 0.15, 400, (250,), 3),
            Case("ordinary", scene, 0.05, 400, (100, 400)),
            Case("ordinary", scene, 0.15, 900, (450, 900)),
            Case("true poses", scene, 0.0, 200, (200,)),
            Case("few rays", scene, 0.15, 200, (200,), 0, few),
            Case("pose rate high", scene, 0.05, 100, (50, 100) if scene == "lego" else (100,), 0, high),
            Case("focal 1.2", scene, 0.05, 150, (150,), focal=1.2),
            Case("focal 0.8", scene, 0.1, 150, (150,), focal=0.8),
            Case("shuffled", scene, 0.05, 100, (100,), shuffled=1.0),
            Case("shuffled some", scene, 0.05, 200, (200,), shuffled=0.25),
            Case("grey", scene, 0.15, 200, (200,), grey=True),
            Case("thrown", scene, 0.05, 200, (200,), 1, thrown=3),
            Case("thrown", scene, 0.15, 150, (150,), 1, thrown=4),
        ]
    found.append(Case("pose rate low", "chair", 0.1, 150, (150,), 0, {POSE_RATE: 1e-4}))
    for scene in CAPTURES:
        found += [
            Case("short", scene, 0.15, 100, (100,)),
            Case("ordinary", scene, 0.02, 400, (150, 400)),
            Case("ordinary", scene, 0.06, 500, (200, 500) if scene == "flower" else (500,), 1),
            Case("true poses", scene, 0.0, 150, (150,)),
            Case("pose rate high", scene, 0.02, 100, (100,), 0, high),
            Case("focal 1.2", scene, 0.02, 150, (150,), focal=1.2),
            Case("shuffled", scene, 0.02, 100, (100,), shuffled=1.0),
            Case("shuffled some", scene, 0.02, 100, (100,), shuffled=0.25),
            Case("thrown", scene, 0.02, 150, (150,), 1, thrown=3),
        ]
    found.append(Case("few rays", "fox", 0.05, 150, (150,), 0, few))
    # in an order without meaning, so that those done so far are of all kinds
    found = [dataclasses.replace(case, seed=case.seed + 100 * draw) for case in found]
    return [found[index] for index in torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]


# -- training ----------------------------------------------------------------------------------------------------------


def object_folder(data: Path, case: Case, folder: Path) -> Path:
    """Some images of an object at the size they are trained at, in Blender's format."""
    from PIL import Image

    source = data / OBJECTS[case.scene]
    content = json.loads((source / "transforms_train.json").read_text())
    content["frames"] = content["frames"][:VIEWS]
    folder.mkdir(parents=True)
    for index, frame in enumerate(content["frames"]):
        with Image.open(source / f"{frame['file_path']}.png") as image:
            picture = image.convert("RGBA").resize((OBJECT_SIZE, OBJECT_SIZE), Image.Resampling.BOX)
        if case.grey:
            silhouette = Image.new("RGBA", picture.size, (110, 110, 110, 255))
            silhouette.putalpha(picture.getchannel("A"))
            picture = silhouette
        picture.save(folder / f"{index}.png")
        frame["file_path"] = str(index)
    for split, frames in (("train", content["frames"]), ("val", content["frames"][:2])):
        (folder / f"transforms_{split}.json").write_text(json.dumps({**content, "frames": frames}))
    return folder


def make_trainer(case: Case, data: Path, folder: Path) -> Any:
    """A trainer as ns-train sets it up, with the case's start; the guard does not intervene."""
    from hashpose_ns.bench.configs import base_config
    from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig

    config = base_config("hashpose-object" if case.scene in OBJECTS else "hashpose-small", "captures")
    manager = config.pipeline.datamanager
    if case.scene in OBJECTS:
        manager.data = object_folder(data, case, folder / "scene")
    else:
        name, manager.camera_res_scale_factor = CAPTURES[case.scene]
        manager.data = data / name
        if (data / name / "poses_bounds.npy").exists():
            manager.dataparser = LLFFDataParserConfig(eval_mode="all")
            config.pipeline.model.near_plane, config.pipeline.model.far_plane = 0.5, 50.0
        else:
            manager.dataparser.eval_mode = "fraction"
            manager.dataparser.train_split_fraction = FRACTIONS[case.scene]
    for key, value in {**SMALL, **case.settings}.items():
        set_value(config, key, value)
    config.output_dir, config.experiment_name, config.timestamp = folder / "out", case.name, "run"
    config.max_num_iterations, config.vis, config.machine.device_type = case.steps, "tensorboard", "cpu"
    config.logging.local_writer.enable = False
    config.steps_per_save = config.steps_per_eval_all_images = config.steps_per_pose_log = 10**6
    config.steps_per_eval_batch = config.steps_per_eval_image = 10**6
    config.pipeline.held_out_rays = 0
    torch.manual_seed(case.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    start(trainer.pipeline, case)
    return trainer


def start(pipeline: Any, case: Case) -> None:
    """Puts cameras where the case begins, and changes their intrinsics."""
    from hashpose_ns.cameras.perturbation import PerturbationConfig, perturb_poses

    optimizer, manager = pipeline.model.camera_optimizer, pipeline.datamanager
    poses = perturb_poses(
        optimizer.reference_camera_to_worlds, PerturbationConfig("barf", case.noise, case.noise, case.seed)
    )
    generator = torch.Generator().manual_seed(case.seed)
    some = torch.randperm(len(poses), generator=generator)[: round(case.shuffled * len(poses))]
    poses[some] = poses[some.roll(1)]
    optimizer.initial_camera_to_worlds.copy_(poses)
    optimizer.base_camera_to_worlds.copy_(poses)
    manager.set_initial_poses(poses)
    for cameras in {
        id(each): each for each in (manager.train_dataset.cameras, manager.train_ray_generator.cameras)
    }.values():
        cameras.fx, cameras.fy = case.focal * cameras.fx, case.focal * cameras.fy


THUMBNAILS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 32)
"""Sizes of shrunk photographs that errors are compared with; `GuardConfig.coarse` is one of them."""


def thumbnail_errors(scene: Any, steps: int, config: Any) -> dict[str, np.ndarray]:
    """Errors of each held-out block in shrunk photographs, by their size: `small8` and so on."""
    from hashpose_ns.guard.pixels import PIXELS_PER_BLOCK, split_pixels

    found = {}
    for size in THUMBNAILS:
        settings = dataclasses.replace(config, coarse=size)
        pixels = split_pixels(scene.train, (steps + max(steps // 2, 1)) * config.rays, settings)
        coarse, photograph = (scene.renderer.composite(part.colors) for part in (pixels.coarse, pixels.held_out))
        found[f"small{size}"] = (coarse - photograph).square().mean(-1).view(-1, PIXELS_PER_BLOCK).mean(-1).numpy()
    return found


def judge(trainer: Any, case: Case, path: Path, thumbnails: dict[str, np.ndarray]) -> None:
    """Judges the poses of now, and keeps what was found.

    Args:
        trainer: after some steps.
        case: what it trains.
        path: file for errors of blocks and poses.
        thumbnails: of the images, filled in by the first call.
    """
    from hashpose_ns.cameras.alignment import align_poses
    from hashpose_ns.guard.config import GuardConfig
    from hashpose_ns.guard.judge import compare_errors
    from hashpose_ns.guard.matches import disagreement
    from hashpose_ns.matches.config import MatchConfig
    from hashpose_ns.matches.strategy import matched_images

    scene, config = trainer.pipeline.scene, GuardConfig(rays=JUDGE_RAYS)
    optimizer = scene.poses
    reference, initial = optimizer.reference_camera_to_worlds, optimizer.initial_camera_to_worlds
    refined = optimizer.refined_camera_to_worlds().detach().clone()
    some = torch.randperm(len(refined), generator=torch.Generator().manual_seed(case.seed))[: 2 * case.thrown]
    refined[some[: case.thrown]] = refined[some[case.thrown :]]
    steps = config.steps_for(scene.total_steps)
    if not thumbnails:
        thumbnails.update(thumbnail_errors(scene, steps, config))
    errors = compare_errors(scene, initial, align_poses(refined, initial).apply_to_poses(refined), steps, config)
    found = {name: getattr(errors, name) for name in ("first", "second", "block_cameras")}
    matches = disagreement(matched_images(scene, MatchConfig()), initial, refined)
    found.update(matches_first=matches.first, matches_second=matches.second, focal=matches.focal)
    with whole_file(path) as partial:
        np.savez_compressed(partial, initial=initial, refined=refined, reference=reference, **found, **thumbnails)


def files(case: Case, work: Path) -> dict[int, Path]:
    """Where what was found after each step is kept."""
    return {step: work / f"{case.name}_{step}.npz" for step in case.judged}


def train(case: Case, data: Path, work: Path) -> None:
    """Trains and judges what has not been yet."""
    paths = files(case, work)
    if all(path.exists() for path in paths.values()):
        return
    warnings.filterwarnings("ignore")
    begin, now = time.process_time(), 0
    thumbnails: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        trainer = make_trainer(case, data, Path(temporary))
        for step, path in paths.items():
            advance(trainer, range(now, step))
            now = step
            judge(trainer, case, path, thumbnails)
    print(f"{case.name}: {time.process_time() - begin:.0f} s of CPU time", flush=True)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def verdict_of(case: Case, step: int, path: Path, config: Any) -> dict[str, Any]:
    """The verdict, and the true errors before and after."""
    from hashpose_ns.cameras.alignment import align_poses, pose_errors
    from hashpose_ns.guard.matches import Disagreement
    from hashpose_ns.guard.movement import movement
    from hashpose_ns.guard.verdict import HeldOutErrors, decide, tells

    with np.load(path) as content:
        kept = {name: torch.from_numpy(content[name]) for name in content.files}
    matches = Disagreement(kept["matches_first"].numpy(), kept["matches_second"].numpy(), float(kept["focal"]))
    config = config.with_matches(tells(matches))
    errors = HeldOutErrors(kept["first"], kept["second"], kept[f"small{config.coarse}"], kept["block_cameras"])
    initial, refined, reference = (kept[name].double() for name in ("initial", "refined", "reference"))
    moved = movement(initial, align_poses(refined, initial).apply_to_poses(refined))
    verdict = decide(errors, moved, config, matches)
    psnr_initial, psnr_refined = (float(psnr.mean()) for psnr in verdict.psnrs())
    before, after = pose_errors(initial, reference), pose_errors(refined, reference)
    extent = float((reference[:, :, 3] - reference[:, :, 3].mean(dim=0)).norm(dim=-1).mean())
    error = {
        f"{name}_{when}": float(getattr(found, name).mean())
        for when, found in (("before", before), ("after", after))
        for name in ("rotation_deg", "center")
    }
    worse = (
        error["rotation_deg_after"] > BEYOND_NOISE * error["rotation_deg_before"] + 0.1
        or error["center_after"] > BEYOND_NOISE * error["center_before"] + 0.005 * extent
    )
    return {
        **{"kind": case.kind, "scene": case.scene, "noise": case.noise, "seed": case.seed},
        **{"step": step, "steps": case.steps},
        **{"verdict": verdict.verdict, "doubt": verdict.doubt, "truth": truth_of(error, worse), **error},
        **{"psnr_initial": psnr_initial, "psnr_refined": psnr_refined, "p_helped": verdict.p_helped},
        "thumbnail": as_thumbnail(kept, "second"),
        **{"turned_deg": float(moved.degrees.mean()), "turned_deg_most": float(moved.degrees.max())},
        **{"converging": moved.converging, "thrown": case.thrown, "hurt_cameras": len(verdict.hurt_cameras)},
        "doubtful_cameras": len(verdict.doubtful_cameras),
        **{"matches": len(matches.log_ratios), "matches_log_ratio": mean_of(matches.log_ratios)},
        "matches_deg": None if np.isnan(matches.median_deg) else matches.median_deg,
    }


def mean_of(values: np.ndarray) -> float | None:
    """The mean; None of nothing."""
    return float(values.mean()) if len(values) else None


def truth_of(error: dict[str, float], worse: bool) -> str:
    """Whether poses became better, worse, or neither."""
    if worse:
        return "worse"
    return "better" if error["rotation_deg_after"] < error["rotation_deg_before"] / BEYOND_NOISE else "same"


def as_thumbnail(kept: dict[str, torch.Tensor], which: str) -> float:
    """Shorter side of the photographs, shrunk, that have the error of the judging field."""

    def level(name: str) -> float:
        sums = torch.zeros(int(kept["block_cameras"].max()) + 1, dtype=torch.float64)
        means = sums.index_add(0, kept["block_cameras"], kept[name].double()) / kept["block_cameras"].bincount()
        return float(means.clamp(min=1e-12).log().mean())

    return float(np.interp(-level(which), [-level(f"small{size}") for size in THUMBNAILS], THUMBNAILS))


def counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often what was said, and how often wrongly."""
    said = {truth: {} for truth in ("better", "same", "worse")}
    for row in rows:
        verdict = row["verdict"] if row["doubt"] is None else f"doubted ({row['doubt']})"
        said[row["truth"]][verdict] = said[row["truth"]].get(verdict, 0) + 1
    return {"verdicts": len(rows), **said}


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Gain of held-out pixels over what became of the true rotation errors, by verdict."""
    from matplotlib.figure import Figure

    colors = {"helped": "tab:green", "undecided": "tab:gray", "doubted": "tab:orange", "hurt": "tab:red"}
    drawing = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = drawing.subplots()
    for said, color in colors.items():
        some = [row for row in rows if ("doubted" if row["doubt"] else row["verdict"]) == said]
        x = [(row["rotation_deg_after"] + 0.1) / (row["rotation_deg_before"] + 0.1) for row in some]
        y = [row["psnr_refined"] - row["psnr_initial"] for row in some]
        axes.scatter(x, y, 36, color, label=said, linewidths=1.5, alpha=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="true rotation error, after / before (each + 0.1 degrees): better | worse")
    axes.set_ylabel("gain of held-out pixels [dB]")
    axes.legend(fontsize=8)
    axes.grid(True, alpha=0.3)
    drawing.savefig(path, dpi=110)


@dataclass
class Args(Output):
    """Settings."""

    data: Path = Path("data")
    """Folder with chair_400, lego_400, fox_270, fern_480, flower_504."""
    work: Path = Path("guard_verdicts")
    """Folder for what the judging fields found."""
    draw: int = 0
    """Which draw of noise, rays and fields; limits were chosen by draw 0."""
    train: bool = True
    """Whether to train what is missing; else the verdicts are those on what there is."""


def main(args: Args) -> None:
    """Trains, judges, prints, writes."""
    from hashpose_ns.guard.config import GuardConfig

    args.work.mkdir(parents=True, exist_ok=True)
    for case in cases(args.draw) if args.train else ():
        train(case, args.data, args.work)
    config = GuardConfig(rays=JUDGE_RAYS)
    rows = [
        verdict_of(case, step, path, config)
        for case in cases(args.draw)
        for step, path in files(case, args.work).items()
        if path.exists()
    ]
    rows.sort(key=lambda row: (row["kind"], row["scene"], row["noise"], row["seed"], row["step"]))
    summary = [counts(rows)]
    show("Verdicts", rows, ("seed", "p_helped", "center_before", "center_after", "thrown"))
    show("What was said of poses that became", summary)
    write_record(args.output, guard=dataclasses.asdict(config), summary=summary, results=rounded(rows))
    if args.output is not None:
        figure(rows, args.output.with_suffix(".png"))


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with four digits."""
    return [
        {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
