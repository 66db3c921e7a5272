"""Rough poses of photographs, from a transforms.json or a COLMAP model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.perturbation import validate_poses
from hashpose_ns.data.source import SourceCameras, cameras_of_file
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.frame import GivenPoses, rigid


@dataclass(frozen=True, eq=False)
class KnownStarts:
    """What a start file says of some photographs."""

    poses: List[Optional[Float[Tensor, "3 4"]]]
    """In the frame of the run's input, float64, OpenGL axes; None where the file does not have the image."""
    intrinsics: List[Optional[Dict[str, Any]]]
    """As the file has them."""

    @classmethod
    def none(cls, count: int) -> KnownStarts:
        """Of photographs of which nothing is known."""
        return cls([None] * count, [None] * count)

    @classmethod
    def read(cls, path: Path, filenames: Sequence[Path], names: Sequence[str], given: GivenPoses) -> KnownStarts:
        """Of a file.

        Args:
            path: a transforms.json, a folder with one, or a COLMAP model.
            filenames: the photographs.
            names: their names.
            given: the run's input, in whose frame the file's poses are taken to be. Those of a COLMAP model are in the
                frame that the input's applied_transform starts from.

        Raises:
            HashPoseError: the file cannot be read, has none of the images, or broken poses.
        """
        source = cameras_of_file(path)
        rows = [row_of(source, filename, name) for filename, name in zip(filenames, names)]
        named = [row for row in rows if row is not None]
        if not named:
            wanted = names[0] if len(names) == 1 else f"any of the {len(names)} photographs, such as {names[0]}"
            raise HashPoseError(
                f"{path} does not name {wanted} (its first is "
                f"{source.names[0] if source.names else 'missing'}); give a file that names them, or no --start."
            )
        poses = source.camera_to_worlds
        validate_poses(poses[named].float(), [source.names[row] for row in named])
        poses = rigid(poses[named])
        if given.source is not None and given.source.applied_transform is not None and source.path.is_dir():
            transform = given.source.applied_transform.double()
            centers = poses[:, :, 3] @ transform[:, :3].T + transform[:, 3]
            poses = torch.cat([transform[:, :3] @ poses[:, :, :3], centers[..., None]], dim=-1)
            poses[:, :, 3] *= given.source.applied_scale
        return cls(
            [None if row is None else poses[named.index(row)] for row in rows],
            [None if row is None else source.intrinsics[row] for row in rows],
        )


def row_of(source: SourceCameras, filename: Path, name: str) -> Optional[int]:
    """The camera of an image: by its file, its name, or the last part of that where only one has it."""
    for matches in (
        [row for row, path in enumerate(source.filenames) if path == filename],
        [row for row, other in enumerate(source.names) if other.removeprefix("./") == name],
        [row for row, other in enumerate(source.names) if Path(other).name == filename.name],
        [row for row, other in enumerate(source.names) if Path(other).stem == filename.stem],
    ):
        if len(matches) == 1:
            return matches[0]
    return None
