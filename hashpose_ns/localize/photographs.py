"""Photographs to look for: their files, their pixels, and the intrinsics of their cameras."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hashpose_ns.data.names import image_folder_and_names
from hashpose_ns.data.reading import reading
from hashpose_ns.errors import HashPoseError
from hashpose_ns.photometry.scene import PosedScene
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Of the files that are taken from a folder."""

SAME_SHAPE = 0.01
"""Aspect ratios are one when they differ by less than this fraction."""

EXIF_IFD, EXIF_FOCAL_35MM = 0x8769, 0xA405
FULL_FRAME = 36.0
"""Width in mm of the film that a 35 mm equivalent focal length is for."""


@dataclass(frozen=True)
class Lens:
    """Intrinsics of a photograph, at its full size."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    distortion: Tuple[float, ...] = (0.0,) * 6
    """k1 to k4, p1, p2."""
    kind: int = CameraType.PERSPECTIVE.value
    origin: str = "the run"
    """Where they come from, in words."""

    def scaled(self, width: int, height: int) -> Lens:
        """For the same picture at another size."""
        x, y = width / self.width, height / self.height
        return Lens(
            self.fx * x, self.fy * y, self.cx * x, self.cy * y, width, height, self.distortion, self.kind, self.origin
        )

    def turned(self) -> Lens:
        """For a camera on its side. Nobody knows which one, so the principal point is in the middle, and what tells
        the sides apart is left out."""
        distortion = (*self.distortion[:4], 0.0, 0.0)
        middle = (self.height / 2, self.width / 2)
        origin = f"{self.origin}, turned on its side"
        return Lens(self.fy, self.fx, *middle, self.height, self.width, distortion, self.kind, origin)


def photograph_files(paths: Sequence[Path], leave_out: Sequence[Path] = ()) -> Tuple[List[Path], List[str]]:
    """The photographs that are meant, and a unique name of each.

    Args:
        paths: files, and folders of which all images are taken, sub-folders included.
        leave_out: folders that hold none of them, such as masks.

    Raises:
        HashPoseError: there is no such file, a folder holds no image, or two would have one name.
    """
    found: List[Path] = []
    excluded = [_absolute(folder) for folder in leave_out]
    for path in paths:
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and not any(folder in _absolute(file).parents for folder in excluded)
            )
            if not files:
                raise HashPoseError(f"The folder {path} holds no image ({', '.join(SUFFIXES)}).")
            found += files
        elif path.is_file():
            found.append(path)
        else:
            raise HashPoseError(f"There is no image {path}; --images takes files or a folder of them.")
    if not found:
        raise HashPoseError("There is no image to look for; --images takes files or a folder of them.")
    filenames = list(dict.fromkeys(_absolute(path) for path in found))
    folder = _absolute(paths[0]) if len(paths) == 1 and paths[0].is_dir() else filenames[0].parent
    return filenames, image_folder_and_names(filenames, folder, Path("."))[1]


def masks_of(folder: Optional[Path], names: Sequence[str]) -> Optional[List[Path]]:
    """The masks of photographs, each under its photograph's name with any suffix; None without a folder.

    Raises:
        HashPoseError: there is no such folder, or one of them has no mask or several.
    """
    return None if folder is None else [_mask_of(folder, Path(name)) for name in names]


def _mask_of(folder: Path, name: Path) -> Path:
    if not folder.is_dir():
        raise HashPoseError(f"There is no folder {folder}; --masks takes a folder of masks.")
    parent = folder / name.parent
    found = [path for path in parent.iterdir() if path.stem in (name.stem, name.name)] if parent.is_dir() else []
    if len(found) != 1:
        count = "no mask" if not found else f"{len(found)} masks"
        raise HashPoseError(f"There is {count} of the photograph {name} in {folder}; give each photograph one.")
    return found[0]


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


class Photographs(InputDataset):
    """Photographs as the run's images are: not larger, alpha removed as there, with their own intrinsics.

    Args:
        scene: the run.
        filenames: the images.
        lenses: intrinsics of each.
        masks: a mask for each, if there are any.

    Raises:
        HashPoseError: an image or a mask cannot be read.
    """

    def __init__(
        self,
        scene: PosedScene,
        filenames: Sequence[Path],
        lenses: Sequence[Lens],
        masks: Optional[Sequence[Optional[Path]]] = None,
    ) -> None:
        trained = scene.train.cameras
        largest = int(torch.maximum(trained.width, trained.height).max())
        sizes = [_no_larger(lens.width, lens.height, largest) for lens in lenses]
        self.masks = list(masks) if masks is not None else [None] * len(filenames)
        self.lenses = list(lenses)
        super().__init__(
            DataparserOutputs(
                image_filenames=list(filenames),
                cameras=cameras_of([lens.scaled(*size) for lens, size in zip(lenses, sizes)]),
                alpha_color=scene.train_outputs.alpha_color,
                scene_box=scene.train.scene_box,
            )
        )

    def full_cameras(self, rows: Sequence[int]) -> Cameras:
        """Intrinsics of some of the photographs at their full size."""
        return cameras_of([self.lenses[row] for row in rows])

    def get_numpy_image(self, image_idx: int) -> Any:
        """The image [height, width, 3 or 4], uint8, at the size of its camera here."""
        from PIL import Image

        filename = self.image_filenames[image_idx]
        with reading(f"The image {filename}"):
            with Image.open(filename) as image:
                return np.array(self._sized(image, image_idx, Image.Resampling.LANCZOS), dtype=np.uint8)

    def _sized(self, image: Any, index: int, how: Any) -> Any:
        if image.mode not in ("RGB", "RGBA"):
            image = image.convert("RGB" if image.mode == "L" else "L")
        size = int(self.cameras.width[index]), int(self.cameras.height[index])
        return image if image.size == size else image.resize(size, resample=how)

    def get_metadata(self, data: Dict) -> Dict:
        """The mask, if there is one."""
        mask = self.masks[data["image_idx"]]
        return {} if mask is None else {"mask": self._mask(mask, data["image_idx"])}

    def _mask(self, filename: Path, index: int) -> Bool[Tensor, "height width 1"]:
        from PIL import Image

        with reading(f"The mask {filename}"):
            with Image.open(filename) as image:
                whole, lens = image.convert("L"), self.lenses[index]
                if whole.size != (lens.width, lens.height):
                    raise HashPoseError(
                        f"The mask {filename} is {whole.width}x{whole.height} and its image {lens.width}x{lens.height}."
                    )
                size = int(self.cameras.width[index]), int(self.cameras.height[index])
                small = whole.resize(size, resample=Image.Resampling.BOX)
        return torch.from_numpy(np.array(small))[..., None] == 255


def _no_larger(width: int, height: int, largest: int) -> Tuple[int, int]:
    scale = min(largest / max(width, height), 1.0)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def cameras_of(lenses: Sequence[Lens]) -> Cameras:
    """nerfstudio's cameras, all of them at the identity."""

    def column(values: List[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype)[:, None]

    distortions: Float[Tensor, "cameras 6"] = torch.tensor([lens.distortion for lens in lenses], dtype=torch.float32)
    return Cameras(
        camera_to_worlds=torch.eye(4)[:3].repeat(len(lenses), 1, 1),
        fx=column([lens.fx for lens in lenses], torch.float32),
        fy=column([lens.fy for lens in lenses], torch.float32),
        cx=column([lens.cx for lens in lenses], torch.float32),
        cy=column([lens.cy for lens in lenses], torch.float32),
        width=column([lens.width for lens in lenses], torch.int64),
        height=column([lens.height for lens in lenses], torch.int64),
        distortion_params=distortions if bool(distortions.any()) else None,
        camera_type=column([lens.kind for lens in lenses], torch.int64),
    )


# -- intrinsics --------------------------------------------------------------------------------------------------------


def lens_of(filename: Path, scene: PosedScene, said: Optional[Dict[str, Any]] = None) -> Lens:
    """Intrinsics of a photograph: what a start file says of it, else the run's for images of its shape, else what its
    EXIF says.

    Args:
        filename: the image.
        scene: the run.
        said: its entries of a start file, see `hashpose_ns.data.source.SourceCameras.intrinsics`.

    Raises:
        HashPoseError: the image cannot be read, has a pixel format that would be misread, or nobody knows its
            intrinsics.
    """
    from PIL import Image

    with reading(f"The image {filename}"):
        with Image.open(filename) as image:
            (width, height), mode = image.size, image.mode
            image.load()
    if mode not in ("RGB", "RGBA", "L"):
        raise HashPoseError(f"The image {filename} has the pixel format {mode}; convert it to 8-bit RGB, RGBA or grey.")
    lens = known_lens(said, width, height) if said else None
    if lens is not None:
        return lens
    known = run_lenses(scene)
    for candidates in (known, [lens.turned() for lens in known]):
        for lens in candidates:
            if abs(width / height / (lens.width / lens.height) - 1.0) < SAME_SHAPE:
                return lens.scaled(width, height)
    lens = lens_from_exif(filename)
    if lens is not None:
        return lens
    shapes = ", ".join(sorted({f"{lens.width}x{lens.height}" for lens in known}))
    raise HashPoseError(
        f"The image {filename} is {width}x{height}, unlike the run's images ({shapes}), and its EXIF names no "
        "focal length; give its intrinsics in a transforms.json with --start, or scale or crop it as the others were."
    )


def lens_from_exif(filename: Path) -> Optional[Lens]:
    """Intrinsics by the focal length in EXIF, for the full size of the image; None if it names none.

    Raises:
        HashPoseError: the image cannot be read.
    """
    from PIL import Image

    with reading(f"The image {filename}"):
        with Image.open(filename) as image:
            width, height = image.size
            focal_35mm = image.getexif().get_ifd(EXIF_IFD).get(EXIF_FOCAL_35MM)
    if not focal_35mm:
        return None
    focal = float(focal_35mm) / FULL_FRAME * max(width, height)
    return Lens(focal, focal, width / 2, height / 2, width, height, origin="its EXIF")


def run_lenses(scene: PosedScene) -> List[Lens]:
    """The run's intrinsics, one for every size of image: the medians over its training images of that size."""
    cameras = scene.train_outputs.cameras
    distortion = cameras.distortion_params
    columns = torch.stack([getattr(cameras, name).reshape(-1).double() for name in ("fx", "fy", "cx", "cy")], dim=1)
    sizes = torch.stack([cameras.width.reshape(-1), cameras.height.reshape(-1)], dim=1).long()
    lenses = []
    for size, count in zip(*torch.unique(sizes, dim=0, return_counts=True)):
        chosen = (sizes == size).all(dim=1).cpu()
        fx, fy, cx, cy = columns[chosen].median(dim=0).values.tolist()
        row = int(chosen.nonzero()[0])
        bent = (0.0,) * 6 if distortion is None else tuple(distortion[chosen].median(dim=0).values.tolist())
        kind = int(cameras.camera_type.reshape(-1)[row])
        lenses.append((int(count), Lens(fx, fy, cx, cy, int(size[0]), int(size[1]), bent, kind)))
    return [lens for _, lens in sorted(lenses, key=lambda pair: -pair[0])]


def known_lens(said: Dict[str, Any], width: int, height: int) -> Optional[Lens]:
    """What a file says of a camera, for the image's size; None if it names no focal length.

    Raises:
        HashPoseError: its numbers are no lens, or are for another shape of image.
    """
    said_width, said_height = float(said.get("w", width)), float(said.get("h", height))
    if "fl_x" in said:
        fx = float(said["fl_x"])
    elif "camera_angle_x" in said:
        fx = 0.5 * said_width / float(np.tan(0.5 * float(said["camera_angle_x"])))
    else:
        return None
    fy = float(said.get("fl_y", fx))
    center = float(said.get("cx", said_width / 2)), float(said.get("cy", said_height / 2))
    model = CAMERA_MODEL_TO_TYPE.get(str(said.get("camera_model", "OPENCV")), CameraType.PERSPECTIVE)
    if said.get("is_fisheye"):
        model = CameraType.FISHEYE
    distortion = tuple(float(said.get(name, 0.0)) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
    numbers = (fx, fy, *center, said_width, said_height, *distortion)
    if not np.isfinite(numbers).all() or min(fx, fy, said_width, said_height) <= 0:
        raise HashPoseError("A focal length or an image size in the --start file is not a positive number.")
    lens = Lens(fx, fy, *center, round(said_width), round(said_height), distortion, model.value, "the start file")
    if abs(width / height / (said_width / said_height) - 1.0) >= SAME_SHAPE:
        raise HashPoseError(
            f"The --start file has intrinsics for {said_width:.0f}x{said_height:.0f} of an image that is "
            f"{width}x{height}, another shape."
        )
    return lens.scaled(width, height)
