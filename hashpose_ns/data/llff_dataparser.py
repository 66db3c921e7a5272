"""Dataparser for LLFF captures: a folder of images and one ``poses_bounds.npy``.

The module is a nerfstudio entry point: it imports dataparser code only.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Literal, Optional, Tuple, Type

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hashpose_ns.cameras.perturbation import ROUNDING_TOLERANCE, validate_poses
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils.dataparsers_utils import get_train_eval_split_all, get_train_eval_split_interval
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

ASPECT_TOLERANCE = 0.02
"""Relative difference of width : height between an image and the size its focal length is for. Downscaling rounds to
whole pixels; anything above this is another crop or a turned image."""


@dataclass
class LLFFDataParserConfig(DataParserConfig):
    """LLFF dataset config"""

    _target: Type = field(default_factory=lambda: LLFF)
    """Class to instantiate."""
    data: Path = Path()
    """Directory with poses_bounds.npy and the folder images (or images_4, images_8, ...)."""
    scale_factor: float = 1.0
    """How much to scale the camera origins by, on top of the scaling by the bounds."""
    downscale_factor: Optional[int] = None
    """Take images from the folder images_{downscale_factor}, or from images if there is none.
    The focal length follows the size the images really have."""
    eval_mode: Literal["last-10-percent", "every-8th", "all"] = "last-10-percent"
    """
    The method to use for splitting the dataset into train and eval.
    Last-10-percent holds out the last tenth of the images sorted by name (rounded down, at least one): BARF's split.
    Every-8th holds out images 0, 8, 16, ...: NeRF's split.
    All uses all the images for any split.
    """
    center: bool = True
    """Whether to make the average camera pose the origin of the world."""
    bound_factor: Optional[float] = 0.75
    """Scale the scene by 1 / (nearest depth bound * this).
    With 0.75 everything lies beyond a depth of 1.33. None keeps the file's units."""
    scene_scale: float = 1.0
    """How much to scale the scene box by.
    At 1 it is the smallest cube around the origin that holds every camera's view out to its far depth bound."""


def read_poses_bounds(path: Path) -> Tuple[Float[np.ndarray, "n 3 4"], Float[np.ndarray, "n 3"], np.ndarray]:
    """Read the file: camera-to-world poses with OpenGL axes, (height, width, focal) in pixels, (near, far) bounds."""
    if not path.exists():
        raise HashPoseError(f"There is no poses_bounds.npy in {path.parent}; LLFF data must have one.")
    try:
        rows = np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise HashPoseError(f"{path} cannot be read as a NumPy array of numbers ({error}).") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or len(rows) == 0:
        raise HashPoseError(f"{path} must hold 17 numbers for each image but has the shape {list(rows.shape)}.")
    matrices = rows[:, :15].reshape(-1, 3, 5)
    # The file's camera axes are [down, right, backwards], OpenGL's [right, up, backwards]
    poses = np.stack([matrices[..., 1], -matrices[..., 0], matrices[..., 2], matrices[..., 3]], axis=-1)
    return poses, matrices[..., 4], rows[:, 15:]


def _average_pose(poses: Float[np.ndarray, "n 3 4"]) -> Float[np.ndarray, "3 4"]:
    """A rigid pose amid the given ones: mean centre, mean viewing direction, mean up made orthogonal to it.

    BARF skips the orthogonalisation, which leaves its recentred poses slightly sheared.
    """
    backwards, up = poses[:, :, 2].mean(axis=0), poses[:, :, 1].mean(axis=0)
    right = np.cross(up, backwards)
    if np.linalg.norm(backwards) < 1e-3 or np.linalg.norm(right) < 1e-3:
        raise HashPoseError(
            "The cameras look in all directions and have no mean pose; disable centring with "
            "--pipeline.datamanager.dataparser.center False."
        )
    backwards, right = backwards / np.linalg.norm(backwards), right / np.linalg.norm(right)
    return np.stack([right, np.cross(backwards, right), backwards, poses[:, :, 3].mean(axis=0)], axis=-1)


def _read_sizes(image_filenames: List[Path]) -> np.ndarray:
    """(height, width) of each image in pixels, from the files' headers."""
    sizes = []
    for filename in image_filenames:
        try:
            with Image.open(filename) as image:
                sizes.append((image.height, image.width))
        except (OSError, UnidentifiedImageError) as error:
            raise HashPoseError(f"{filename} cannot be opened as an image.") from error
    return np.array(sizes)


@dataclass
class LLFF(DataParser):
    """LLFF DatasetParser

    Reads the format of "Local Light Field Fusion" (Mildenhall et al. 2019) the way BARF trains on it: cameras in the
    frame of their average pose, the nearest depth bound at 1.33, the known focal length, the last tenth held out. The
    metadata holds ``depth_bounds`` [N, 2], each image's near and far bound in scaled units.
    """

    config: LLFFDataParserConfig
    downscale_factor: Optional[int] = None
    """Set to 1 by datamanagers in inference mode, so that intrinsics are those of the original images."""

    def __init__(self, config: LLFFDataParserConfig):
        super().__init__(config=config)
        self.downscale_factor = config.downscale_factor

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs) -> DataparserOutputs:
        raw_poses, height_width_focal, bounds = read_poses_bounds(self.config.data / "poses_bounds.npy")
        image_filenames = self.find_images()
        if len(image_filenames) != len(raw_poses):
            raise HashPoseError(
                f"{self.config.data / 'poses_bounds.npy'} has {len(raw_poses)} poses but {image_filenames[0].parent} "
                f"has {len(image_filenames)} images; they must match one to one in the order of the names."
            )
        names = [filename.name for filename in image_filenames]
        validate_poses(torch.from_numpy(raw_poses), names, ROUNDING_TOLERANCE)
        for name, (near, far), values in zip(names, bounds, height_width_focal):
            if not (0 < near < far < np.inf):
                raise HashPoseError(f"The depth bounds of {name} must be 0 < near < far but are {near:g} and {far:g}.")
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise HashPoseError(f"The image size and focal length of {name} must be positive numbers.")
        if self.config.scale_factor <= 0 or (self.config.bound_factor is not None and self.config.bound_factor <= 0):
            raise HashPoseError("The scale_factor and bound_factor of llff-data must be above zero.")

        scale = self.config.scale_factor
        if self.config.bound_factor is not None:
            scale /= float(bounds[:, 0].min()) * self.config.bound_factor

        transform = np.eye(4)[:3]
        if self.config.center:
            average = _average_pose(raw_poses)
            transform = np.concatenate([average[:, :3].T, -average[:, :3].T @ average[:, 3:]], axis=1)
        poses = transform[:, :3] @ raw_poses
        poses[:, :, 3] = scale * (poses[:, :, 3] + transform[:, 3])

        sizes = _read_sizes(image_filenames)
        aspects = sizes[:, 1] / sizes[:, 0] * height_width_focal[:, 0] / height_width_focal[:, 1]
        for name, size, stored, aspect in zip(names, sizes, height_width_focal, aspects):
            if abs(aspect - 1.0) > ASPECT_TOLERANCE:
                raise HashPoseError(
                    f"{name} is {size[1]}x{size[0]} but its focal length is for {stored[1]:g}x{stored[0]:g}, another "
                    "aspect ratio; give the images that poses_bounds.npy was made for."
                )
        # One focal length per axis: downscaling to whole pixels does not shrink both by quite the same factor
        focal_y, focal_x = (height_width_focal[:, 2:] * sizes / height_width_focal[:, :2]).T

        indices = torch.from_numpy(self._split_indices(image_filenames, split)).long()
        camera_to_worlds, depth_bounds = torch.from_numpy(poses), torch.from_numpy(bounds * scale)
        fx, fy, image_sizes = (torch.from_numpy(array) for array in (focal_x, focal_y, sizes))
        half_side = self.config.scene_scale * self._reach(camera_to_worlds, depth_bounds[:, 1], image_sizes, fx, fy)
        cameras = Cameras(
            camera_to_worlds=camera_to_worlds[indices].float(),
            fx=fx[indices].float(),
            fy=fy[indices].float(),
            cx=image_sizes[indices, 1].float() / 2.0,
            cy=image_sizes[indices, 0].float() / 2.0,
            height=image_sizes[indices, 0],
            width=image_sizes[indices, 1],
            camera_type=CameraType.PERSPECTIVE,
        )
        return DataparserOutputs(
            image_filenames=[image_filenames[i] for i in indices],
            cameras=cameras,
            scene_box=SceneBox(aabb=torch.tensor([[-half_side] * 3, [half_side] * 3], dtype=torch.float32)),
            metadata={"depth_bounds": depth_bounds[indices].float()},
            dataparser_transform=torch.from_numpy(transform).float(),
            dataparser_scale=scale,
        )

    def find_images(self) -> List[Path]:
        """The image files, sorted by name."""
        folder = self.config.data / "images"
        factor = self.downscale_factor
        if factor is not None and factor != 1:
            downscaled = self.config.data / f"images_{factor}"
            if downscaled.is_dir():
                folder = downscaled
            else:
                CONSOLE.log(f"[yellow]There is no folder {downscaled}: taking the images of {folder} as they are.")
        if not folder.is_dir():
            raise HashPoseError(f"There is no folder {folder} with the images that belong to poses_bounds.npy.")
        image_filenames = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not image_filenames:
            raise HashPoseError(f"The folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        return image_filenames

    def _split_indices(self, image_filenames: List[Path], split: str) -> np.ndarray:
        """Indices of a split's images among all, in the order of the names."""
        if self.config.eval_mode == "last-10-percent":
            num_train = len(image_filenames) - max(1, len(image_filenames) // 10)
            train, held_out = np.split(np.arange(len(image_filenames)), [num_train])
        elif self.config.eval_mode == "every-8th":
            train, held_out = get_train_eval_split_interval(image_filenames, 8)
        elif self.config.eval_mode == "all":
            train, held_out = get_train_eval_split_all(image_filenames)
        else:
            raise HashPoseError(f"llff-data has no eval_mode called {self.config.eval_mode!r}.")
        if len(train) == 0:
            raise HashPoseError(
                f"Holding out images for evaluation leaves none of {len(image_filenames)} to train on; use "
                "--pipeline.datamanager.dataparser.eval-mode all."
            )
        if split == "train":
            return train
        if split in ("val", "test"):
            return held_out
        raise ValueError(f"Unknown dataparser split {split}")

    @staticmethod
    def _reach(
        poses: Float[Tensor, "n 3 4"],
        far: Float[Tensor, "n"],
        sizes: Int[Tensor, "n 2"],
        focal_x: Float[Tensor, "n"],
        focal_y: Float[Tensor, "n"],
    ) -> float:
        """Largest absolute coordinate of any camera centre or image corner at the far bound."""
        slope_x, slope_y = sizes[:, 1] / (2.0 * focal_x), sizes[:, 0] / (2.0 * focal_y)
        reach = poses[:, :, 3].abs().max()
        for sign_x, sign_y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            directions = torch.stack([sign_x * slope_x, sign_y * slope_y, -torch.ones_like(slope_x)], dim=-1)
            corners = poses[:, :, 3] + far[:, None] * (poses[:, :, :3] @ directions[:, :, None])[..., 0]
            reach = torch.maximum(reach, corners.abs().max())
        return float(reach)


LLFFDataParserSpecification = DataParserSpecification(
    config=LLFFDataParserConfig(),
    description="LLFF dataparser: poses_bounds.npy with images, split, scaled and centred as in BARF.",
)
