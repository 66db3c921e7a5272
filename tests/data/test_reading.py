"""What goes wrong while data are read is one sentence with the original error as its cause, or has a way round."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import blender_scene, colmap_scene, edit_json, nerfstudio_scene

from hashpose_ns.data.reading import reading
from hashpose_ns.datamanager import HashPoseDataManager, HashPoseDataManagerConfig
from hashpose_ns.errors import HashPoseError
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig


def make(config, test_mode: str = "val") -> HashPoseDataManager:
    settings = HashPoseDataManagerConfig(dataparser=config, train_num_rays_per_batch=20, eval_num_rays_per_batch=20)
    return settings.setup(device="cpu", test_mode=test_mode)


def colmap_config(data: Path, **settings) -> ColmapDataParserConfig:
    return ColmapDataParserConfig(data=data, colmap_path=Path("sparse/0"), **settings)


def refused(config, *contents: str) -> HashPoseError:
    with pytest.raises(HashPoseError) as error:
        make(config)
    sentence = str(error.value)
    assert all(content in sentence for content in contents), sentence
    assert "\n" not in sentence and sentence.endswith(".")
    return error.value


# -- any error ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, cause",
    [
        (ValueError("too few columns.\nand more"), "too few columns"),
        (OverflowError("cannot convert"), "OverflowError, cannot convert"),
        (MemoryError(), "there is not enough memory"),
        (StopIteration(), "StopIteration"),
        (KeyError("fl_x"), "the entry 'fl_x' is missing"),
        (FileNotFoundError(2, "No such file or directory", "/x/y.json"), "No such file or directory: '/x/y.json'"),
    ],
)
def test_any_error_is_a_sentence_and_stays_the_cause(error, cause):
    with pytest.raises(HashPoseError) as refusal:
        with reading("The data"):
            raise error
    assert str(refusal.value) == f"The data cannot be read: {cause} (HASHPOSE_DEBUG=1 prints the traceback)."
    assert refusal.value.__cause__ is error


def test_what_is_no_error_of_the_data_passes():
    for passing in (KeyboardInterrupt(), SystemExit(3), HashPoseError("Said already.")):
        with pytest.raises(type(passing)) as same:
            with reading("The data"):
                raise passing
        assert same.value is passing


# -- transforms.json ---------------------------------------------------------------------------------------------------


def _frame(**changes):
    return lambda meta: meta["frames"][2].update(changes)


@pytest.mark.parametrize(
    "edit, contents",
    [
        (lambda meta: meta.update(camera_model="FULL_OPENCV"), ["camera model FULL_OPENCV", "undistort"]),
        (lambda meta: meta.update(frames=None), ["TypeError"]),
        (lambda meta: meta.update(frames=[]), ["cannot be read"]),
        (lambda meta: meta.update(w=float("inf")), ["OverflowError"]),
        (lambda meta: meta.update(distortion_params=[0.1, 0.1]), ["cannot be read", "IndexError"]),
        (lambda meta: meta.update(train_filenames=["no.png"]), ["Some filenames for split train were not found"]),
        (_frame(file_path="images/\ud800.png"), [".png"]),
        (_frame(file_path=7), ["TypeError"]),
        (_frame(transform_matrix=None), ["images/frame_02.png", "4x4"]),
        (_frame(transform_matrix=[[1, 0], [0, 1]]), ["images/frame_02.png is 2x2"]),
        (_frame(mask_path="images"), ["mask"]),
    ],
)
def test_transforms_that_cannot_be_read(tmp_path, edit, contents):
    edit_json(nerfstudio_scene(tmp_path, 6) / "transforms.json", edit)
    refused(NerfstudioDataParserConfig(data=tmp_path), *contents)


@pytest.mark.parametrize("content", [b"", b"null", b"[" * 9999, '{"frames": []}'.encode("utf-16")])
def test_file_that_holds_no_transforms(tmp_path, content):
    (nerfstudio_scene(tmp_path, 6) / "transforms.json").write_bytes(content)
    refused(NerfstudioDataParserConfig(data=tmp_path), "The data cannot be read", str(tmp_path))


def test_matrices_of_three_rows_need_a_fourth(tmp_path):
    def cut(meta):
        for frame in meta["frames"]:
            frame["transform_matrix"] = frame["transform_matrix"][:3]

    edit_json(nerfstudio_scene(tmp_path, 6) / "transforms.json", cut)
    refused(NerfstudioDataParserConfig(data=tmp_path), "is 3x4", "add [0, 0, 0, 1]")


def test_masks_in_colour_name_the_mask(tmp_path):
    def add(meta):
        for frame in meta["frames"]:
            frame["mask_path"] = frame["file_path"]

    edit_json(nerfstudio_scene(tmp_path, 6) / "transforms.json", add)
    refused(NerfstudioDataParserConfig(data=tmp_path), "with its mask", "frame_0", "1 channel")


def test_image_whose_header_claims_the_size_of_a_bomb(tmp_path):
    image = nerfstudio_scene(tmp_path, 6) / "images" / "frame_03.png"
    content = bytearray(image.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    image.write_bytes(content)
    refused(NerfstudioDataParserConfig(data=tmp_path), "frame_03.png", "DecompressionBombError")


# -- COLMAP ------------------------------------------------------------------------------------------------------------

COUNT = len(b"frame_00.png\0") + 8 + 64
"""Offset of the number of observations of the first image in images.bin."""


@pytest.mark.parametrize(
    "file, offset, format, value, contents",
    [
        ("cameras.bin", 0, "<Q", 2**64 - 1, ["18446744073709551615 cameras"]),
        ("cameras.bin", 12, "<i", 12, ["SIMPLE_DIVISION", "undistort"]),
        ("cameras.bin", 12, "<i", 6, ["cut off"]),  # FULL_OPENCV has more parameters than the file
        ("cameras.bin", 12, "<i", 99, ["number 99"]),
        ("images.bin", 0, "<Q", 10**6, ["1000000 images", "cut off or damaged"]),
        ("images.bin", COUNT, "<Q", 2**31, ["2147483648 observations of frame_00.png"]),
        ("images.bin", COUNT, "<Q", 2**60, ["observations of frame_00.png"]),
        ("images.bin", 72, "B", 0xFF, ["not UTF-8"]),
        ("images.bin", 68, "<i", 7, ["frame_00.png", "camera 7"]),
    ],
)
def test_damaged_colmap_model(tmp_path, file, offset, format, value, contents):
    path = colmap_scene(tmp_path, 6) / "sparse" / "0" / file
    content = bytearray(path.read_bytes())
    struct.pack_into(format, content, offset, value)
    path.write_bytes(content)
    refused(colmap_config(tmp_path), *contents)


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin"])
def test_colmap_file_that_is_cut_off_anywhere(tmp_path, file):
    path = colmap_scene(tmp_path, 3) / "sparse" / "0" / file
    content = path.read_bytes()
    for length in range(0, len(content), 23):
        path.write_bytes(content[:length])
        refused(colmap_config(tmp_path), file, "cut off")


def test_text_model_with_what_is_not_there(tmp_path):
    model = colmap_scene(tmp_path, 4, binary=False) / "sparse" / "0"
    images, cameras = (model / "images.txt").read_text(), (model / "cameras.txt").read_text()
    (model / "images.txt").write_text(images.replace(" 1 frame_02.png", " 9 frame_02.png"))
    refused(colmap_config(tmp_path), "camera 9")
    (model / "images.txt").write_text(images)
    (model / "cameras.txt").write_text(cameras.replace("PINHOLE", "THIN_PRISM_FISHEYE"))
    refused(colmap_config(tmp_path), "camera model THIN_PRISM_FISHEYE")


def test_colmap_model_without_points_trains(tmp_path):
    manager = make(colmap_config(colmap_scene(tmp_path, 9), load_3D_points=True))
    assert len(manager.train_dataset) == 7
    assert "points3D_xyz" not in manager.train_dataset.metadata


def test_question_that_nobody_can_answer(tmp_path, monkeypatch, capsys):
    """pytest's standard input is at its end, as a batch job's is."""
    from nerfstudio.data.dataparsers import colmap_dataparser

    monkeypatch.setattr(colmap_dataparser, "MAX_AUTO_RESOLUTION", 16)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))
    colmap_scene(tmp_path, 6)
    manager = make(colmap_config(tmp_path))
    assert int(manager.train_dataset.cameras.width[0]) == 24
    assert "the images are used at full size" in capsys.readouterr().out
    refused(colmap_config(tmp_path, downscale_factor=2), "--downscale-factor 1")


# -- what has a way round ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_cameras_in_one_place_have_no_scale(tmp_path, rounding, capsys):
    def put_in_one_place(meta):
        for i, frame in enumerate(meta["frames"]):
            for row, value in zip(frame["transform_matrix"], (1.1, 2.2, 3.3)):
                row[3] = value + i * rounding

    edit_json(nerfstudio_scene(tmp_path, 6) / "transforms.json", put_in_one_place)
    manager = make(NerfstudioDataParserConfig(data=tmp_path))
    centers = manager.train_dataset.cameras.camera_to_worlds[:, :, 3]
    assert float(centers.abs().max()) < 1e-5
    assert "All cameras are in one place" in capsys.readouterr().out


def test_single_held_out_image_of_instant_ngp(tmp_path):
    meta = json.loads((nerfstudio_scene(tmp_path, 10) / "transforms.json").read_text())
    manager = make(InstantNGPDataParserConfig(data=tmp_path))
    (name,) = (path.name for path in manager.eval_dataset.image_filenames)
    (frame,) = (frame for frame in meta["frames"] if frame["file_path"].endswith(name))
    expected = torch.tensor(frame["transform_matrix"])[:3]
    expected[:, 3] *= manager.dataparser.config.scene_scale
    torch.testing.assert_close(manager.eval_dataset.cameras.camera_to_worlds, expected[None])


@pytest.mark.parametrize("mode", ["val", "test", "inference"])
@pytest.mark.parametrize("lists, held_out", [(("train", "val"), 2), (("train", "test"), 2), (("train",), 0)])
def test_data_that_lack_a_split(tmp_path, mode, lists, held_out):
    def split(meta):
        names = [frame["file_path"] for frame in meta["frames"]]
        meta.update({f"{name}_filenames": names[:4] if name == "train" else names[4:] for name in lists})

    edit_json(nerfstudio_scene(tmp_path, 6) / "transforms.json", split)
    manager = make(NerfstudioDataParserConfig(data=tmp_path), mode)
    assert len(manager.train_dataset) == 4
    assert len(manager.eval_dataset) == len(manager.eval_dataset.cameras) == held_out


def test_blender_scene_of_training_images_alone(tmp_path):
    (blender_scene(tmp_path) / "transforms_test.json").unlink()
    assert len(make(BlenderDataParserConfig(data=tmp_path)).eval_dataset) == 0


def test_a_broken_split_is_not_taken_for_a_missing_one(tmp_path):
    (blender_scene(tmp_path) / "transforms_test.json").write_text("{")
    refused(BlenderDataParserConfig(data=tmp_path), "cannot be read")


def test_points_are_read_when_asked_for(tmp_path):
    from nerfstudio.data.utils import colmap_parsing_utils as colmap

    model = colmap_scene(tmp_path, 9) / "sparse" / "0"
    colors, track = np.zeros(3, dtype=np.uint8), np.array([1, 2])
    point = colmap.Point3D(1, np.zeros(3), colors, 0.5, track, np.zeros(2, dtype=int))
    colmap.write_points3D_binary({1: point}, model / "points3D.bin")
    settings = HashPoseDataManagerConfig(dataparser=colmap_config(tmp_path, load_3D_points=True))
    manager = settings.setup(device="cpu", test_mode="inference")
    assert manager.train_dataset.metadata["points3D_xyz"].shape == (1, 3)
    (model / "points3D.bin").write_bytes((model / "points3D.bin").read_bytes()[:-3])
    with pytest.raises(HashPoseError, match="points3D.bin is cut off"):
        settings.setup(device="cpu", test_mode="inference")


def test_images_are_named_when_they_break_later(tmp_path):
    manager = make(NerfstudioDataParserConfig(data=nerfstudio_scene(tmp_path, 6)))
    path = manager.train_dataset.image_filenames[1]
    Image.new("RGB", (24, 24)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HashPoseError, match=f"The image {path} cannot be read"):
        manager.train_dataset[1]
