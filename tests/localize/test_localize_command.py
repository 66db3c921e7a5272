"""hashpose-localize as a command: poses in the input's frame in every format, verdicts, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import roma
import torch
from ball_world import FOCAL, SIZE, ball_picture, ball_world, looking_in, shorten_searches
from PIL import Image
from scenes import chair_frames, colmap_scene

from hashpose_ns.errors import HashPoseError
from hashpose_ns.localize import api
from hashpose_ns.localize.api import Search, localize
from hashpose_ns.localize.cli import entrypoint
from hashpose_ns.localize.photographs import Lens, Photographs, lens_of, photograph_files
from hashpose_ns.localize.starts import KnownStarts
from hashpose_ns.photometry.localize import SearchConfig, whole_image
from nerfstudio.data.utils import colmap_parsing_utils as colmap

FEW = ("--hypotheses", 16, "--rays", 10_000, "--overlay-size", 16, "--batch", 4)
QUICK = SearchConfig(hypotheses=16, rays=10_000)
VIEWS = looking_in(12, seed=5)[[5, 7, 9]]


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    shorten_searches(monkeypatch)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run that has learned a ball exactly, in a frame that drifted, and the map from there to the input's frame."""
    return ball_world(tmp_path_factory.mktemp("ball") / "data", drift=True)


@pytest.fixture
def photographs(tmp_path: Path, world) -> Path:
    """Pictures from two of `VIEWS` in a folder and a sub-folder, the second at another size."""
    ball_picture(world[0], VIEWS[0], tmp_path / "photographs" / "a.png")
    ball_picture(world[0], VIEWS[1], tmp_path / "photographs" / "more" / "b.png", 2 * SIZE)
    return tmp_path / "photographs"


def noise(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def command(tmp_path: Path, in_process, monkeypatch, world):
    """The command on the ball's run, which stands in for a run on disk."""
    monkeypatch.setattr(api, "load_trained_pipeline", lambda *args, **kwargs: SimpleNamespace(scene=world[0]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yml").touch()

    def run(*arguments, output: str = "found"):
        return in_process(
            entrypoint,
            *("--load-config", tmp_path / "run" / "config.yml", "--output-dir", tmp_path / output),
            *arguments,
        )

    return run


@pytest.fixture
def truth(world) -> torch.Tensor:
    """`VIEWS` in the frame of the input."""
    return world[1].apply_to_poses(VIEWS)


def degrees(poses, truth) -> list[float]:
    angles = roma.rotmat_geodesic_distance(poses[:, :, :3].double(), truth[:, :, :3].double())
    return [math.degrees(angle) for angle in angles.tolist()]


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_photographs_are_found_and_written_in_every_format(tmp_path, command, photographs, truth):
    noise(photographs / "noise.png")
    done = command("--images", photographs, *FEW)
    assert done.code == 0, done.output
    assert "Found 2 of 3 photographs" in done.output and "not found" in done.output
    folder = tmp_path / "found"
    model = [f"sparse/0/{part}.bin" for part in ("cameras", "images", "points3D")]
    files = [
        "export.json",
        "images.txt",
        "overlays/a.png.jpg",
        "overlays/more/b.png.jpg",
        "poses.json",
        *model,
        "transforms.json",
    ]
    assert files_in(folder) == sorted([*files, "tum.txt"])

    content = json.loads((folder / "poses.json").read_text())
    assert [image["name"] for image in content["images"]] == ["a.png", "more/b.png"]
    found = torch.tensor([image["camera_to_world"] for image in content["images"]], dtype=torch.float64)
    assert max(degrees(found, truth[:2])) < 1.5
    assert float((found[:, :, 3] - truth[:2, :, 3]).norm(dim=-1).max()) < 0.1
    for image in content["images"]:
        assert 0 < image["residual"] <= image["limit"] and image["start_residual"] is None
        assert 0 < image["rotation_std_deg"] < 30 and 0 < image["translation_std"] < 2

    frames = json.loads((folder / "transforms.json").read_text())
    matrices = torch.tensor([frame["transform_matrix"] for frame in frames["frames"]], dtype=torch.float64)
    torch.testing.assert_close(matrices[:, :3], found, rtol=0, atol=1e-9)
    assert (folder / frames["frames"][1]["file_path"]).resolve() == (photographs / "more" / "b.png").resolve()
    lenses = [(frame["w"], frame["fl_x"]) for frame in frames["frames"]]
    assert lenses == [(SIZE, pytest.approx(FOCAL)), (2 * SIZE, pytest.approx(2 * FOCAL))]

    flip = np.array([1.0, -1.0, -1.0])
    for image in colmap.read_images_binary(folder / "sparse/0/images.bin").values():
        pose = found[["a.png", "more/b.png"].index(image.name)].numpy()
        np.testing.assert_allclose(image.qvec2rotmat().T, pose[:, :3] * flip, atol=1e-6)
        np.testing.assert_allclose(-image.qvec2rotmat().T @ image.tvec, pose[:, 3], atol=1e-6)
    rows = np.loadtxt(folder / "tum.txt")
    np.testing.assert_allclose(rows[:, 1:4], found[:, :, 3].numpy(), atol=1e-9)
    assert (folder / "images.txt").read_text() == "a.png\nmore/b.png\n"

    again = command("--images", photographs, *FEW)
    assert again.code == 1 and "--overwrite True" in again.output


def test_a_rough_start_is_refined_and_its_file_may_have_other_images(tmp_path, command, photographs, truth):
    rough = torch.eye(4, dtype=torch.float64)
    rough[:3] = truth[0]
    rough[:3, :3] = rough[:3, :3] @ roma.rotvec_to_rotmat(torch.tensor([0.02, 0.03, -0.04], dtype=torch.float64))
    rough[:3, 3] += 0.2
    frames = [
        {"file_path": "./somewhere/a.png", "transform_matrix": rough.tolist()},
        {"file_path": "c.png", "transform_matrix": [[math.nan] * 4] * 4},
    ]
    start = tmp_path / "rough.json"
    start.write_text(json.dumps({"fl_x": 10 * FOCAL, "w": 10 * SIZE, "h": 10 * SIZE, "frames": frames}))
    done = command("--images", photographs, "--start", start, *FEW)
    assert done.code == 0, done.output
    by_name = {image["name"]: image for image in json.loads((tmp_path / "found/poses.json").read_text())["images"]}
    assert by_name["a.png"]["moved"]["rotation_deg"] > 1 and by_name["more/b.png"]["moved"] is None
    assert by_name["a.png"]["residual"] < by_name["a.png"]["start_residual"]
    assert by_name["a.png"]["intrinsics_from"] == "the start file"
    found = torch.tensor([by_name["a.png"]["camera_to_world"]])
    assert degrees(found, truth)[0] < 1.5


def test_nothing_is_written_when_nothing_is_found(tmp_path, command):
    done = command("--images", noise(tmp_path / "noise.png"), *FEW)
    assert done.code == 1 and "The photograph was not found in the run" in done.output
    assert not (tmp_path / "found").exists()


def masked_out(folder: Path) -> list:
    (folder / "masks").mkdir()
    Image.new("L", (SIZE, SIZE), 0).save(folder / "masks" / "a.png")
    return ["--images", folder / "a.png", "--masks", folder / "masks"]


def mask_of_another_size(folder: Path) -> list:
    (folder / "masks").mkdir()
    Image.new("L", (SIZE, 5), 255).save(folder / "masks" / "a.png")
    return ["--images", folder / "a.png", "--masks", folder / "masks"]


def no_mask(folder: Path) -> list:
    (folder / "masks").mkdir()
    return ["--images", folder / "a.png", "--masks", folder / "masks"]


def one_colour(folder: Path) -> list:
    Image.new("RGB", (SIZE, SIZE), "teal").save(folder / "teal.png")
    return ["--images", folder / "teal.png"]


def unreadable(folder: Path) -> list:
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return ["--images", folder / "cut.png"]


def sixteen_bits(folder: Path) -> list:
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint16)).save(folder / "deep.png")
    return ["--images", folder / "deep.png"]


def another_shape(folder: Path) -> list:
    noise(folder / "wide.png").write_bytes(b"")
    Image.new("RGB", (SIZE, 20), "red").save(folder / "wide.png")
    return ["--images", folder / "wide.png"]


def start_of(content, folder: Path) -> list:
    (folder / "start.json").write_text(json.dumps(content))
    return ["--images", folder / "a.png", "--start", folder / "start.json"]


def frame(name: str, matrix) -> dict:
    return {"frames": [{"file_path": name, "transform_matrix": matrix}]}


REFUSED = {
    "no image": (lambda folder: ["--images", folder / "z.png"], "There is no image"),
    "empty folder": (lambda folder: (folder / "e").mkdir() or ["--images", folder / "e"], "holds no image"),
    "one colour": (one_colour, "has one colour only"),
    "unreadable": (unreadable, "cut.png cannot be read"),
    "sixteen bits": (sixteen_bits, "has the pixel format I;16"),
    "another shape": (another_shape, "unlike the run's images"),
    "masked out": (masked_out, "leaves no pixel"),
    "mask of another size": (mask_of_another_size, "and its image 48x48"),
    "no mask": (no_mask, "There is no mask of the photograph a.png"),
    "other names": (lambda folder: start_of(frame("q.png", np.eye(4).tolist()), folder), "does not name"),
    "broken start": (lambda folder: start_of(frame("a.png", [[math.nan] * 4] * 4), folder), "a.png"),
    "no start": (lambda folder: ["--images", folder, "--start", folder / "no.json"], "There is no"),
    "start of nothing": (lambda folder: ["--images", folder, "--start", folder], "neither a transforms.json nor"),
    "start without frames": (lambda folder: start_of({}, folder), "the entry 'frames' is missing"),
    "no rays": (lambda folder: ["--images", folder, "--rays", 5], "search.rays at least 1024"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_in_one_sentence(tmp_path, command, photographs, case):
    make, words = REFUSED[case]
    done = command(*make(photographs), *(() if case == "no rays" else FEW))
    errors = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert done.code == 1 and len(errors) == 1 and words in errors[0], done.output
    assert not (tmp_path / "found").exists()


def test_a_run_that_is_not_there_is_named(tmp_path, in_process, photographs):
    done = in_process(
        entrypoint,
        *("--load-config", tmp_path / "no.yml", "--output-dir", tmp_path / "found", "--images", photographs),
    )
    assert done.code == 1 and "There is no file" in done.output


# -- from Python -------------------------------------------------------------------------------------------------------


def test_one_photograph_from_python(world, photographs, truth):
    scene = world[0]
    result = localize(scene, photographs / "a.png", config=QUICK)
    assert result.found and result.name == "a.png" and result.start is None
    assert degrees(result.camera_to_world[None], truth)[0] < 1.5
    wild = SearchConfig(hypotheses=1, rays=1024, lr=3.0)
    kept = localize(scene, photographs / "a.png", truth[0], wild)
    assert kept.kept_start and kept.moved == (0.0, 0.0)
    torch.testing.assert_close(kept.camera_to_world, truth[0], rtol=0, atol=1e-12)
    with pytest.raises(HashPoseError, match="is a folder"):
        localize(scene, photographs)


def test_poses_go_to_the_learned_frame_and_back(world):
    scene, to_input = world
    search, learned = Search(scene, QUICK), VIEWS.float()
    given = search.to_input(learned)
    torch.testing.assert_close(given, to_input.apply_to_poses(VIEWS), rtol=0, atol=1e-4)
    torch.testing.assert_close(search.to_learned(given), learned, rtol=0, atol=1e-5)


# -- photographs and their lenses --------------------------------------------------------------------------------------


def test_lenses_come_from_the_run_the_start_file_or_exif(tmp_path, world):
    scene = world[0]
    big = tmp_path / "big.png"
    Image.new("RGB", (250, 250)).save(big)
    lens = lens_of(big, scene)
    assert lens.fx == pytest.approx(250 / SIZE * FOCAL) and lens.cx == pytest.approx(125) and lens.origin == "the run"
    said = lens_of(big, scene, {"fl_x": 100.0, "w": 500, "h": 500, "cx": 240.0, "k1": 0.1})
    assert (said.fx, said.fy, said.cx, said.cy) == (50.0, 50.0, 120.0, 125.0) and said.distortion[0] == 0.1
    with pytest.raises(HashPoseError, match="another shape"):
        lens_of(big, scene, {"fl_x": 100.0, "w": 500, "h": 400})
    with pytest.raises(HashPoseError, match="not a positive number"):
        lens_of(big, scene, {"fl_x": -1.0, "w": 500, "h": 500})
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 27
    wide = tmp_path / "wide.jpg"
    Image.new("RGB", (360, 240)).save(wide, exif=exif)
    from_exif = lens_of(wide, scene)
    assert from_exif.fx == from_exif.fy == pytest.approx(270.0) and from_exif.origin == "its EXIF"


def test_a_camera_on_its_side_has_its_focal_lengths_exchanged():
    turned = Lens(500.0, 510.0, 330.0, 230.0, 640, 480, (0.1, 0.2, 0.0, 0.0, 0.01, 0.02)).turned()
    assert (turned.fx, turned.fy, turned.width, turned.height) == (510.0, 500.0, 480, 640)
    assert (turned.cx, turned.cy, turned.distortion) == (240.0, 320.0, (0.1, 0.2, 0.0, 0.0, 0.0, 0.0))


def test_large_photographs_are_looked_at_at_the_size_of_training(tmp_path, world):
    scene = world[0]
    with_alpha = Image.new("RGBA", (96, 96), (255, 0, 0, 0))
    with_alpha.paste((0, 0, 255, 255), (0, 0, 48, 96))
    with_alpha.save(tmp_path / "big.png")
    Image.new("L", (16, 16), 51).save(tmp_path / "small.png")
    paths = [tmp_path / "big.png", tmp_path / "small.png"]
    dataset = Photographs(scene, paths, [lens_of(path, scene) for path in paths])
    assert dataset[0]["image"].shape == (SIZE, SIZE, 4) and dataset[1]["image"].shape == (16, 16, 3)
    assert dataset.cameras.fx.flatten().tolist() == pytest.approx([FOCAL, FOCAL * 16 / SIZE])
    assert dataset.full_cameras([0]).width.tolist() == [[96]]
    whole = whole_image(scene, dataset, 0, "big.png").image
    assert whole[5, 5].tolist() == [0.0, 0.0, 1.0] and whole[5, 40].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(dataset[1]["image"], torch.full((16, 16, 3), 0.2))


def test_files_are_found_once_and_named_by_their_folder(tmp_path):
    for name in ("a/1.png", "a/b/2.JPG", "a/notes.txt", "a/.hidden/3.png", "a/masks/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files, names = photograph_files([tmp_path / "a"], [tmp_path / "a" / "masks"])
    assert names == ["1.png", "b/2.JPG"] and files[0] == tmp_path / "a/1.png"
    files, names = photograph_files([tmp_path / "a/1.png", tmp_path / "a/b/2.JPG", tmp_path / "a/1.png"])
    assert names == ["1.png", "b/2.JPG"]


def test_starts_in_colmaps_frame_follow_the_inputs_transform(tmp_path, world):
    folder = colmap_scene(tmp_path / "model", num_images=4)
    given = Search(world[0], QUICK).given
    names = ["frame_01.png", "other.png"]
    files = [tmp_path / name for name in names]
    plain = KnownStarts.read(folder, files, names, given)
    matrix = torch.tensor(chair_frames("train", 4)[1][1]["transform_matrix"], dtype=torch.float64)[:3]
    torch.testing.assert_close(plain.poses[0], matrix, rtol=0, atol=1e-5)
    assert plain.poses[1] is None and plain.intrinsics[1] is None and plain.intrinsics[0]["w"] == 24
    applied = torch.tensor([[0.0, 0.0, 1.0, 0.5], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    changed = replace(given, source=replace(given.source, applied_transform=applied, applied_scale=2.0))
    moved = KnownStarts.read(folder, files, names, changed).poses[0]
    whole = applied @ torch.cat([matrix, torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])
    whole[:, 3] *= 2.0
    torch.testing.assert_close(moved, whole, rtol=0, atol=1e-5)
