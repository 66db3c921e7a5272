"""Pixels of images: which of them count, a random draw of them, and their rays from given poses. The one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datasets.base_dataset import InputDataset


@dataclass(frozen=True, eq=False)
class Pixels:
    """Some pixels of a dataset."""

    images: Int[Tensor, "num_pixels"]
    """Index of each pixel's image in its dataset."""
    coordinates: Float[Tensor, "num_pixels 2"]
    """Row and column of the pixel's centre."""
    colors: Float[Tensor, "num_pixels channels"]
    """Colours in [0, 1], with alpha where the images have it."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> Pixels:
        """Some of the pixels."""
        return Pixels(self.images[index], self.coordinates[index], self.colors[index])

    def to(self, device: torch.device | str) -> Pixels:
        """The pixels on a device."""
        return Pixels(self.images.to(device), self.coordinates.to(device), self.colors.to(device))

    @staticmethod
    def cat(parts: Sequence[Pixels]) -> Pixels:
        """All pixels of several sets, in order."""
        columns = zip(*((part.images, part.coordinates, part.colors) for part in parts))
        return Pixels(*(torch.cat(column) for column in columns))


class ImagePixels:
    """The pixels of one image that count: all of them or, if there is a mask, those that it leaves.

    Args:
        dataset: that holds the image. It is read once.
        index: of the image.
    """

    def __init__(self, dataset: InputDataset, index: int) -> None:
        data = dataset[index]
        self._hold(index, data["image"], mask_of(data), 1)

    @classmethod
    def of(
        cls,
        index: int,
        image: Float[Tensor, "height width channels"],
        mask: Optional[Bool[Tensor, "height width"]] = None,
        factor: int = 1,
    ) -> ImagePixels:
        """The pixels of an image that is at hand.

        Args:
            index: of the image in its dataset.
            image: colours in [0, 1], with alpha if the image has it; on the CPU.
            mask: which pixels count; all by default.
            factor: pixels of the dataset's image along an edge of one of these.
        """
        pixels = cls.__new__(cls)
        pixels._hold(index, image, mask, factor)
        return pixels

    def _hold(self, index: int, image: Tensor, mask: Optional[Tensor], factor: int) -> None:
        self.index = index
        self.image: Float[Tensor, "height width channels"] = image
        self.mask: Optional[Bool[Tensor, "height width"]] = mask
        self.factor = factor
        self._allowed = None if mask is None else torch.nonzero(mask)

    @property
    def count(self) -> int:
        """How many pixels count."""
        height, width = self.image.shape[:2]
        return height * width if self._allowed is None else len(self._allowed)

    @property
    def allowed(self) -> Bool[Tensor, "height width"]:
        """Whether a pixel counts."""
        return torch.ones(self.image.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def draw(self, count: int, generator: torch.Generator) -> Pixels:
        """Pixels drawn evenly with replacement; none if the mask leaves none.

        Args:
            count: how many.
            generator: on the CPU.
        """
        if self.count == 0:
            return self.at(torch.zeros(0, 2, dtype=torch.long))
        chosen = torch.randint(self.count, (count,), generator=generator)
        if self._allowed is not None:
            return self.at(self._allowed[chosen])
        width = self.image.shape[1]
        return self.at(torch.stack([chosen // width, chosen % width], dim=-1))

    def at(self, pixels: Int[Tensor, "count 2"]) -> Pixels:
        """The pixels in these rows and columns."""
        colors = self.image[pixels[:, 0], pixels[:, 1]]
        return Pixels(torch.full((len(pixels),), self.index), (pixels + 0.5) * self.factor, colors)

    def reduced(self, factor: int) -> ImagePixels:
        """The image with squares of pixels averaged into one, whose ray is that of the square's centre. A square counts
        if all of its pixels do; what is left over at the right and lower edge does not.

        Args:
            factor: edge of the squares; smaller where the image is.
        """
        factor = max(min(factor, *self.image.shape[:2]), 1)
        if factor == 1:
            return self
        image = functional.avg_pool2d(self.image.movedim(-1, 0)[None], factor)[0].movedim(0, -1)
        mask = None if self.mask is None else ~shrunk(~self.mask, factor)
        return ImagePixels.of(self.index, image, mask, self.factor * factor)

    def within(self, region: Bool[Tensor, "height width"], at_least: int) -> ImagePixels:
        """The same image, of which only pixels of a region count and, where these are too few, others drawn at random.

        Args:
            region: what is of interest.
            at_least: how many pixels are to count, if the image has as many.
        """
        chosen = region & self.allowed
        missing = at_least - int(chosen.sum())
        if missing > 0:
            others = torch.nonzero(self.allowed & ~chosen)
            drawn = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:missing]]
            chosen[drawn[:, 0], drawn[:, 1]] = True
        return ImagePixels.of(self.index, self.image, chosen, self.factor)


def shrunk(region: Bool[Tensor, "height width"], factor: int) -> Bool[Tensor, "rows columns"]:
    """Whether squares of pixels hold any of a region.

    Args:
        region: of the pixels.
        factor: edge of the squares.
    """
    return functional.max_pool2d(region[None, None].float(), factor)[0, 0] > 0


def draw_pixels(dataset: InputDataset, index: int, count: int, generator: torch.Generator) -> Pixels:
    """Pixels of an image, drawn evenly with replacement from those that its mask leaves; none if it leaves none. Keep
    the `ImagePixels` of an image to draw from it more than once."""
    return ImagePixels(dataset, index).draw(count, generator)


def mask_of(data: Dict[str, Any]) -> Optional[Bool[Tensor, "height width"]]:
    """Where the mask in a dataset's entry is not 0; None without a mask."""
    return data["mask"][..., 0] > 0 if "mask" in data else None


def pixel_rays(cameras: Cameras, pixels: Pixels, rows: Optional[Int[Tensor, "num_pixels"]] = None) -> RayBundle:
    """Rays of pixels, on the cameras' device, which carry the index of their image.

    Args:
        cameras: cameras at the poses that pixels are seen from.
        pixels: on the same device.
        rows: which of the cameras sees each pixel; that of the pixel's image by default.
    """
    rows = pixels.images if rows is None else rows
    bundle = cameras.generate_rays(camera_indices=rows[:, None], coords=pixels.coordinates)
    bundle.camera_indices = pixels.images[:, None]
    return bundle


def posed_cameras(
    dataset: InputDataset,
    camera_to_worlds: Float[Tensor, "num_cameras 3 4"],
    device: torch.device | str,
    indices: Optional[Sequence[int]] = None,
) -> Cameras:
    """A dataset's cameras at other poses.

    Args:
        dataset: whose cameras.
        camera_to_worlds: a pose for each of the cameras that are asked for.
        device: where to.
        indices: which cameras, one as often as it is named; all by default.
    """
    chosen = torch.arange(len(dataset.cameras)) if indices is None else torch.as_tensor(indices, dtype=torch.long)
    cameras = dataset.cameras[chosen].to(device)
    cameras.camera_to_worlds = camera_to_worlds.to(device).float()
    return cameras


def evenly_spaced(count: int, wanted: int) -> List[int]:
    """`wanted` of `count` indices, evenly spaced; all of them if `wanted` is negative or too large."""
    if wanted < 0 or wanted >= count:
        return list(range(count))
    return [int(index) for index in torch.linspace(0, count - 1, wanted).round()]
