"""hashpose-sparse poses and eval, with tiny weights and with a network that knows the answer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from hashpose_ns.data.source import cameras_of_file
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.frame import flip_axes
from hashpose_ns.localize.photographs import Lens, cameras_of
from hashpose_ns.sparse.crops import crops_of
from hashpose_ns.sparse.geometry import angles, pair_rotations
from hashpose_ns.sparse.network import Cameras
from hashpose_ns.sparse.objects import random_objects
from hashpose_ns.sparse.render import render
from hashpose_ns.sparse.scenes import look_at
from hashpose_ns.sparse.start import find_cameras
from hashpose_ns.sparse_command.cli import Commands

SIZE, TANGENT = 96, 0.5
"""Of the photographs."""


def sparse(*arguments) -> None:
    tyro.cli(Commands, args=[*map(str, arguments)]).main()


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """Ten photographs of an object that is not in their middle: files, true world-to-camera poses, the object."""
    folder = tmp_path_factory.mktemp("capture")
    generator = torch.Generator().manual_seed(4)
    objects = random_objects("articulated", 1, generator)
    azimuth = torch.linspace(0, 5.0, 10)
    outwards = torch.stack([azimuth.cos() * 0.9, azimuth.sin() * 0.9, torch.full((10,), 0.435)], -1)
    aims = 0.3 * torch.randn(10, 3, generator=generator)
    directions = torch.nn.functional.normalize(aims - 2.5 * outwards, dim=-1)
    rotations = look_at(directions, 0.3 * torch.randn(10, generator=generator))
    translations = -(rotations @ (2.5 * outwards)[..., None])
    poses = torch.cat([rotations, translations], -1)
    index, background = torch.zeros(10, dtype=torch.long), torch.tensor([0.2, 0.5, 0.8]).expand(10, 3)
    lights = torch.tensor([0.0, 0, 1]).expand(10, 3)
    pictures, _ = render(objects, index, poses, torch.full((10,), TANGENT), lights, background, SIZE)
    files = []
    for i, picture in enumerate(pictures):
        files.append(folder / f"{i:02}.png")
        Image.fromarray((255 * picture.permute(1, 2, 0)).round().byte().numpy()).save(files[-1])
    return files, poses, objects


def lens() -> Lens:
    focal = SIZE / 2 / TANGENT
    return Lens(focal, focal, SIZE / 2, SIZE / 2, SIZE, SIZE)


class Knowing:
    """In place of a network: the true cameras of the crops, in a frame and a unit of its own."""

    def __init__(self, crops, poses) -> None:
        self.crops, self.poses = crops, poses

    def __call__(self, images, tangents, steps, generator):
        chosen = [int((self.crops.images - image).abs().sum((1, 2, 3)).argmin()) for image in images[0]]
        turned = self.crops.turns[chosen].float() @ self.poses[chosen]
        distance = turned[0, :, 3].norm()
        return [Cameras(turned[None, :, :, :3], turned[None, :, :, 3] / distance)]


@pytest.mark.parametrize("count", [3, 10])
def test_poses_of_crops_become_those_of_the_photographs(capture, count):
    """Also of more views than one group has."""
    files, poses, _ = capture
    crops = crops_of(files[:count], cameras_of([lens()] * count), None, 32)
    assert set(crops.found_by) == {"plain background"}
    found = find_cameras(Knowing(crops, poses), crops, 0)
    centers = -(poses[:count, :, :3].transpose(1, 2) @ poses[:count, :, 3:])[..., 0].double()
    widths = crops.tangents / 1.15 * (crops.turns.float() @ poses[:count])[:, 2, 3]  # of the object's boxes
    centers = centers * 0.6 / widths.max()
    expected = torch.cat([poses[:count, :, :3].transpose(1, 2).double(), centers[..., None]], -1)
    torch.testing.assert_close(flip_axes(found), expected, atol=1e-4, rtol=0)


def test_a_crop_is_what_a_camera_turned_towards_the_object_sees(capture):
    files, poses, objects = capture
    crops = crops_of(files[:3], cameras_of([lens()] * 3), None, 32)
    turned = crops.turns.float() @ poses[:3]
    index, background = torch.zeros(3, dtype=torch.long), torch.tensor([0.2, 0.5, 0.8]).expand(3, 3)
    lights = torch.tensor([0.0, 0, 1]).expand(3, 3)
    drawn, _ = render(objects, index, turned, crops.tangents, lights, background, 32)
    error = (drawn - crops.images).abs().mean((1, 2, 3))
    shifted = (drawn.roll(2, -1) - crops.images).abs().mean((1, 2, 3))
    assert float(error.max()) < 0.03 and bool((error < 0.6 * shifted).all())
    assert float(crops.turns.sub(torch.eye(3)).abs().amax((1, 2)).min()) > 0.02  # objects off the middle
    # The same with the lens's principal point off the middle, and with a mask.
    wide = Lens(lens().fx, lens().fy, 10.0, 80.0, SIZE, SIZE)
    assert bool((angles(crops_of(files[:1], cameras_of([wide]), None, 32).turns, crops.turns[:1]) > 10).all())


def test_the_command_writes_transforms_colmap_and_what_it_saw(capture, weights, tmp_path):
    files, _, _ = capture
    out = tmp_path / "out"
    sparse("poses", "--images", *files[:3], "--output-dir", out, "--fov", 53.13, "--weights", weights)
    source = cameras_of_file(out / "transforms.json")
    model = cameras_of_file(out / "sparse" / "0")
    assert [path.name for path in source.filenames] == ["00.png", "01.png", "02.png"]
    assert source.filenames[0].resolve() == files[0]
    first, second = source.camera_to_worlds, model.camera_to_worlds
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(first[:, :, :3]), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert source.intrinsics[0]["fl_x"] == pytest.approx(lens().fx, rel=1e-3)
    # Cameras look at the object: it is in front of them and not far from their axes.
    forwards = (first[:, :, :3].transpose(1, 2) @ -first[:, :, 3:])[..., 0]
    assert bool((forwards[:, 2] < 0).all())
    said = json.loads((out / "poses.json").read_text())
    assert len(said["images"]) == 3 and said["weights"]["step"] == 0
    assert Image.open(out / "crops.png").width > 90
    with pytest.raises(HashPoseError, match="exists"):
        sparse("poses", "--images", *files[:3], "--output-dir", out, "--fov", 53.13, "--weights", weights)
    # Intrinsics from the file that was written; the poses in it are not read. Other numbers of steps, other poses.
    arguments = ("--intrinsics", out / "transforms.json", "--weights", weights)
    sparse("poses", "--images", *files[:3], "--output-dir", tmp_path / "again", *arguments)
    again = cameras_of_file(tmp_path / "again" / "transforms.json").camera_to_worlds
    assert float(angles(pair_rotations(again[:, :, :3]), pair_rotations(first[:, :, :3])).max()) < 0.5


def test_masks_and_alpha_say_where_the_object_is(capture, weights, tmp_path):
    files, _, _ = capture
    (tmp_path / "masks").mkdir()
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:60, 30:50] = 255
    for file in files[:2]:
        Image.fromarray(mask).save(tmp_path / "masks" / file.name)
    masks = [tmp_path / "masks" / file.name for file in files[:2]]
    crops = crops_of(files[:2], cameras_of([lens()] * 2), masks, 32)
    assert crops.found_by == ["mask"] * 2 and crops.boxes[0] == (30, 20, 50, 60)
    picture = Image.open(files[0]).convert("RGBA")
    picture.putalpha(Image.fromarray(mask))
    picture.save(tmp_path / "alpha.png")
    crops_alpha = crops_of([tmp_path / "alpha.png"], cameras_of([lens()]), None, 32)
    assert crops_alpha.found_by == ["alpha"]
    torch.testing.assert_close(crops_alpha.images[0], crops.images[0])
    out = tmp_path / "out"
    arguments = ("--masks", tmp_path / "masks", "--fov", 50, "--weights", weights)
    sparse("poses", "--images", *files[:2], "--output-dir", out, *arguments)
    assert "mask_path" in (out / "transforms.json").read_text()


def test_noise_is_used_whole_and_lenses_without_an_object_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    narrow = Lens(60.0, 60.0, 30.0, 20.0, 60, 40)
    crops = crops_of([tmp_path / "noise.png"], cameras_of([narrow]), None, 32)
    assert crops.found_by == ["whole picture"]
    assert float(crops.tangents[0]) == pytest.approx(1.15 * 0.5, rel=0.01)
    with pytest.raises(HashPoseError, match="degrees wide"):
        crops_of([tmp_path / "noise.png"], cameras_of([Lens(5.0, 5.0, 30.0, 20.0, 60, 40)]), None, 32)


def test_bad_input_is_a_sentence(capture, weights, tmp_path, monkeypatch):
    files, _, _ = capture

    def refused(match: str, *arguments) -> None:
        with pytest.raises(HashPoseError, match=match) as caught:
            sparse("poses", "--output-dir", tmp_path / "out", *arguments)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    fine = ("--fov", 53.0, "--weights", weights)
    refused("One photograph has no pose", "--images", files[0], *fine)
    refused("There is no image", "--images", files[0], tmp_path / "nothing.png", *fine)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    refused("cannot be read", "--images", files[0], tmp_path / "broken.png", *fine)
    refused("focal length", "--images", *files[:2], "--weights", weights)
    refused("--fov", "--images", *files[:2], "--fov", 500.0, "--weights", weights)
    refused("There is no file", "--images", *files[:2], "--fov", 53, "--weights", tmp_path / "none.npz")
    monkeypatch.setattr("hashpose_ns.sparse.weights.PACKAGED", tmp_path / "none.npz")
    refused("comes without weights", "--images", *files[:2], "--fov", 53)
    (tmp_path / "masks").mkdir()
    for file in files[:2]:
        Image.new("L", (20, 10), 255).save(tmp_path / "masks" / file.name)
    refused("20x10 and its image 96x96", "--images", *files[:2], *fine, "--masks", tmp_path / "masks")
    for file in files[:2]:
        Image.new("L", (SIZE, SIZE), 0).save(tmp_path / "masks" / file.name)
    refused("shows no object", "--images", *files[:2], *fine, "--masks", tmp_path / "masks")
    refused("--steps", "--images", *files[:2], *fine, "--steps", -1)


def test_eval_writes_chance_and_every_stage(weights, tmp_path):
    out = tmp_path / "results.json"
    sparse("eval", "--weights", weights, "--views", 3, 5, "--scenes", 3, "--steps", 2, "--output-path", out)
    rows = json.loads(out.read_text())["results"]
    assert [(row["family"], row["views"]) for row in rows] == [
        (family, views) for family in ("articulated", "blobs") for views in (3, 5)
    ]
    assert all(len(row["stages"]) == 3 and math.isfinite(row["chance"]["median_deg"]) for row in rows)
    assert "centre_within_0.1" in rows[1]["chance"] and "centre_within_0.1" not in rows[0]["chance"]
    with pytest.raises(HashPoseError, match="exists"):
        sparse("eval", "--weights", weights, "--output-path", out)
    with pytest.raises(HashPoseError, match="at least 2"):
        sparse("eval", "--weights", weights, "--scenes", 1)
    with pytest.raises(HashPoseError, match="no device"):
        sparse("eval", "--weights", weights, "--device", "cuda:77")
