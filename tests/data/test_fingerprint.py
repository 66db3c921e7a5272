"""Other pictures or intrinsics in place of those that were trained on are noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hashpose_ns.data.fingerprint import difference, fingerprint
from nerfstudio.cameras.cameras import Cameras

NUM = 4


def write_images(folder: Path, ending: str) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = [folder / f"{index}.{ending}" for index in range(NUM)]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return paths


def cameras(focal: float = 100.0, scale: float = 1.0, k1: float = 0.0) -> Cameras:
    focals, zeros = torch.full((NUM, 1), 100.0), torch.zeros(NUM, 6)
    focals[2], zeros[2, 0] = focal, k1
    camera = Cameras(torch.eye(4)[:3].repeat(NUM, 1, 1), focals, focals, 60.0, 45.0, 120, 90, distortion_params=zeros)
    camera.rescale_output_resolution(scale)
    return camera


@pytest.fixture(params=["png", "jpg", "bmp"])
def images(request, tmp_path) -> list[Path]:
    return write_images(tmp_path, request.param)


@pytest.fixture
def compare(images) -> Callable[..., str | None]:
    """The images as they are now, with other cameras, against what they were."""
    saved: Dict[str, Tensor] = fingerprint(images, cameras())

    def against(now: Cameras, any_size: bool = False) -> str | None:
        return difference(saved, fingerprint(images, now), images, any_size)

    return against


def test_one_changed_pixel_is_another_picture(images, compare):
    assert compare(cameras()) is None
    pixels = np.array(Image.open(images[1]))
    pixels[45, 60] = 255 - pixels[45, 60]
    Image.fromarray(pixels).save(images[1])
    assert compare(cameras()) == f"1 of 4 images have another content now, the first is {images[1].name}"


def test_pictures_that_change_places(images, compare):
    aside = images[0].rename(images[0].with_name("aside"))
    images[3].rename(images[0])
    aside.rename(images[3])
    assert "2 of 4 images have another content" in compare(cameras())


@pytest.mark.parametrize("change", [{"focal": 110.0}, {"k1": 0.1}])
def test_other_intrinsics(images, compare, change):
    assert compare(cameras(**change)) == f"1 of 4 images have other intrinsics now, the first is {images[2].name}"


def test_another_resolution_cannot_be_compared_and_passes_where_nothing_is_trained(compare):
    half = cameras(scale=0.5)
    assert compare(half, any_size=True) is None
    assert "4 of 4 images have other intrinsics" in compare(half)


def test_rounding_and_names_make_no_difference(images, compare):
    for path in images:
        path.rename(path.with_name("x" + path.name))
    images[:] = [path.with_name("x" + path.name) for path in images]
    assert compare(cameras(focal=100.0005)) is None


def test_an_earlier_version_left_none(images):
    assert difference({}, fingerprint(images, cameras()), images, any_size=False) is None
