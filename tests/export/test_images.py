"""Images beside exported cameras, and the dataset folders that come of it."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.images import check_images, place_images
from hashpose_ns.export.poses import exported_cameras
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

PERSPECTIVE = [0.12, -0.05, 0.01, 0.0, 0.004, -0.003]
FISHEYE = [0.05, -0.02, 0.004, -0.001, 0.0, 0.0]


def texture(directions: torch.Tensor) -> np.ndarray:
    """Smooth colours of viewing directions, 8 bit."""
    waves = torch.sin(5.0 * directions + torch.tensor([0.0, 1.0, 2.0]))
    return (127.5 + 127.5 * waves).round().to(torch.uint8).numpy()


def photograph(camera: Cameras) -> np.ndarray:
    """What a camera at the origin sees of a far textured world."""
    return texture(camera.generate_rays(camera_indices=0).directions)


@pytest.fixture
def exported(tmp_path, helpers):
    """Cameras of a nerfstudio dataset with two sub-folders, masks and 8x6 images."""
    names = [f"images/{side}/{i}.jpg" for side in ("left", "right") for i in range(3)]
    helpers.write_images(tmp_path / "data", names)
    helpers.write_transforms(tmp_path / "data", helpers.poses(6), names, fl_x=8.0, fl_y=8.0, cx=4.0, cy=3.0, w=8, h=6)
    parser = NerfstudioDataParserConfig(data=tmp_path / "data", eval_mode="all", downscale_factor=1).setup()
    outputs = parser.get_dataparser_outputs("train")
    outputs.mask_filenames = helpers.write_images(tmp_path / "data", [f"masks/{i}.png" for i in range(6)])
    return exported_cameras(helpers.scene(outputs, parser, outputs.cameras.camera_to_worlds))


@pytest.mark.parametrize("how", ["link", "copy", "undistorted"])
def test_images_lie_under_their_names(tmp_path, exported, how):
    (tmp_path / "out").mkdir()
    cameras = place_images(tmp_path / "out", exported, how)
    assert len(cameras) == 6
    for folder, suffix, sources in (
        ("images", ".jpg", exported.image_filenames),
        ("masks", ".png", exported.mask_filenames),
    ):
        for name, source in zip(exported.names, sources):
            target = (tmp_path / "out" / folder / name).with_suffix(suffix)
            assert target.read_bytes() == source.read_bytes()  # nothing to undistort
            assert target.is_symlink() == (how == "link")
            if how == "link":
                assert os.path.isabs(os.readlink(target)), "the folder may be moved"


def test_no_images(tmp_path, exported):
    exported.image_filenames[0].unlink()
    assert place_images(tmp_path, exported, "none") is exported.cameras
    with pytest.raises(HashPoseError, match="1 of 12 images are missing, the first is .*0.jpg; .*--images none"):
        check_images(exported, "copy", tmp_path / "out")
    check_images(exported, "none", tmp_path / "out")


def renamed(exported, names, masks: bool):
    """The same images under other names, in the way a dataset with such names would have them."""
    kept = exported.image_filenames[: len(names)]
    masks = exported.mask_filenames[: len(names)] if masks else None
    return dataclasses.replace(exported, image_filenames=kept, names=names, mask_filenames=masks)


@pytest.mark.parametrize("how", ["link", "copy", "undistorted"])
def test_files_that_would_be_one_are_refused(tmp_path, exported, how, monkeypatch):
    (tmp_path / "out").mkdir()
    before = sorted(tmp_path.rglob("*"))
    one_stem = renamed(exported, ["a/000.png", "a/000.jpg", "b/000.png"], masks=True)
    with pytest.raises(HashPoseError, match="0.png and .*1.png would both become .*masks/a/000.png; .*nerfstudio`"):
        check_images(one_stem, how, tmp_path / "out")
    check_images(renamed(exported, one_stem.names, masks=False), how, tmp_path / "out")
    # here these are two files, elsewhere one
    for names in (["a.jpg", "A.jpg"], ["left/a.png", "LEFT/a.png"], ["\u00e9.jpg", "e\u0301.jpg"]):
        check_images(renamed(exported, names, masks=True), how, tmp_path / "out")
        with monkeypatch.context() as elsewhere, pytest.raises(HashPoseError, match="would both become"):
            elsewhere.setattr(Path, "samefile", lambda *paths: True)
            check_images(renamed(exported, names, masks=False), how, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "format, suffix, psnr",
    [("JPEG", "jpg", 39), ("MPO", "jpg", 39), ("AVIF", "avif", 38), ("WEBP", "webp", 99), ("TIFF", "tif", 99)],
)
def test_undistorted_images_lose_little(tmp_path, exported, format, suffix, psnr):
    """Against the same undistortion of a PNG with the same pixels; edges of colour would show subsampling."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    options = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if format == "MPO" else {}
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    Image.fromarray(blocks).save(tmp_path / f"0.{suffix}", format=format, **options)
    Image.open(tmp_path / f"0.{suffix}").convert("RGB").save(tmp_path / "1.png")
    cameras = Cameras(
        torch.eye(4)[:3].repeat(2, 1, 1), fx=80.0, fy=82.0, cx=49.0, cy=34.5, width=96, height=72,
        distortion_params=torch.tensor(PERSPECTIVE),
    )  # fmt: skip
    filenames = [tmp_path / f"0.{suffix}", tmp_path / "1.png"]
    images = renamed(dataclasses.replace(exported, image_filenames=filenames), [path.name for path in filenames], False)
    place_images(tmp_path / "out", dataclasses.replace(images, cameras=cameras), "undistorted")
    with Image.open(tmp_path / "out/images" / filenames[0].name) as image:
        assert image.format == ("JPEG" if format == "MPO" else format)
        differences = np.asarray(image) - np.asarray(Image.open(tmp_path / "out/images/1.png"), float)
    assert 10 * np.log10(255**2 / max(np.square(differences).mean(), 1e-9)) > psnr


@pytest.mark.parametrize(
    "camera_type, distortion, median, worst", [("PERSPECTIVE", PERSPECTIVE, 1, 6), ("FISHEYE", FISHEYE, 1, 6)]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_undistorted_images_show_what_a_pinhole_there_sees(
    tmp_path, exported, camera_type, distortion, median, worst, suffix
):
    width, height = 96, 72
    camera = Cameras(
        camera_to_worlds=torch.eye(4)[:3].repeat(6, 1, 1), fx=80.0, fy=82.0, cx=49.0, cy=34.5, width=width,
        height=height, distortion_params=torch.tensor(distortion), camera_type=CameraType[camera_type],
    )  # fmt: skip
    filenames = [tmp_path / f"{i}{suffix}" for i in range(6)]
    for filename in filenames:
        Image.fromarray(photograph(camera[0:1])).save(filename, quality=98)
    masks = [tmp_path / f"mask{i}.png" for i in range(6)]
    half = np.zeros((height, width), np.uint8)
    half[:, width // 2 :] = 255
    for mask in masks:
        Image.fromarray(half).convert("1").save(mask)
    names = [filename.name for filename in filenames]
    exported = dataclasses.replace(
        exported, cameras=camera, image_filenames=filenames, mask_filenames=masks, names=names
    )
    pinholes = place_images(tmp_path / "out", exported, "undistorted")
    assert pinholes.distortion_params is None and set(pinholes.camera_type.flatten().tolist()) == {1}
    pinhole = pinholes[0:1]
    assert (int(pinhole.width), int(pinhole.height)) == (width, height)
    with Image.open(tmp_path / f"out/images/0{suffix}") as image:
        assert image.format == ("PNG" if suffix == ".png" else "JPEG")
        differences = np.abs(np.asarray(image).astype(int) - photograph(pinhole).astype(int))
    # half a pixel of misplacement would show as several grey levels
    assert np.median(differences) <= median + (suffix == ".jpg") and np.percentile(differences, 99.5) <= worst
    mask = np.asarray(Image.open(tmp_path / "out/masks/0.png"))
    assert set(np.unique(mask)) == {0, 255}
    column = float(pinhole.cx) + float(pinhole.fx) * (width / 2 - 49.0) / 80.0  # near the axis nothing bends
    edge = np.flatnonzero(np.diff(mask[height // 2].astype(int)))
    assert len(edge) == 1 and abs(edge[0] + 1 - column) < 1.0


def test_distortion_that_opencv_does_not_know_is_refused(tmp_path, exported):
    exported.cameras.distortion_params = torch.tensor([0.1, 0.0, 0.0, 0.01, 0.0, 0.0]).repeat(6, 1)
    with pytest.raises(HashPoseError, match="fourth order .* cannot be undistorted"):
        check_images(exported, "undistorted", tmp_path / "out")


@pytest.mark.parametrize("images", ["link", "undistorted"])
def test_the_folder_is_a_dataset_for_splatfacto(tmp_path, helpers, call, images):
    """Up to the cameras, images and points that its model asks the data manager for; it draws on a GPU only."""
    pipeline, true = helpers.ball(tmp_path / "data")
    assert call(pipeline.scene, "colmap", "--images", images, "--num-points", 400) == 0
    parser = ColmapDataParserConfig(
        data=tmp_path / "out", colmap_path="sparse/0", max_2D_matches_per_3D_point=-1, eval_mode="all"
    )
    datamanager = FullImageDatamanagerConfig(dataparser=parser).setup(device="cpu", test_mode="val")
    outputs = datamanager.train_dataparser_outputs
    original = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    train = [int(path.stem) for path in outputs.image_filenames]
    np.testing.assert_allclose(original, true[train], atol=1e-5)
    camera, data = datamanager.next_train(0)
    assert data["image"].shape[:2] == (int(camera.height), int(camera.width))
    # the ball's own colours where points were said to be seen, in what the splats are compared with
    xyz, rgb = outputs.metadata["points3D_xyz"], outputs.metadata["points3D_rgb"]
    assert 100 < len(xyz) <= 400
    ids, xys = outputs.metadata["points3D_image_ids"], outputs.metadata["points3D_points2D_xy"]
    differences = []
    for index in range(len(train)):
        cached = datamanager.cached_train[index]["image"].numpy()
        shown = (ids == index + 1).any(dim=1)
        pixels = xys[shown][ids[shown] == index + 1].long()
        if images == "link":  # splatfacto undistorts these itself, to its own pinhole
            cached = np.asarray(Image.open(outputs.image_filenames[index])) / 255.0
        differences.append(np.abs(cached[pixels[:, 1], pixels[:, 0]] - rgb[shown].numpy() / 255.0).mean(axis=1))
    assert np.median(np.concatenate(differences)) < 0.06
