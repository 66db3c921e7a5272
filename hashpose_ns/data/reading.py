"""What dataparsers, datasets and files raise while data are read becomes one sentence, here and nowhere else."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np

from hashpose_ns.data.colmap_files import check_colmap_model, unsupported_camera_model
from hashpose_ns.errors import DEBUG, HashPoseError, one_line
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE

COINCIDE = 4e-7
"""Centres whose spread is this part of their distance from the origin are one point in 32-bit numbers."""


@contextmanager
def reading(what: str, config: Optional[DataParserConfig] = None) -> Iterator[None]:
    """Turns any error of the block into a HashPoseError, with the original as its cause.

    Args:
        what: what is being read, as the subject of the sentence.
        config: the dataparser's, where the block runs it: causes that are known are looked up in its data.
    """
    try:
        yield
    except HashPoseError:
        raise
    except Exception as error:
        known = _known_cause(error, config) if config is not None else None
        if known is None:
            place = f"in {config.data}; " if config is not None else ""
            known = f"{what} cannot be read: {_cause(error)} ({place}{DEBUG}=1 prints the traceback)."
        raise HashPoseError(known) from error


def _cause(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the entry {error} is missing"
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, (OSError, AssertionError)) or type(error) in (ValueError, RuntimeError):  # written to be read
        return one_line(error)
    return f"{type(error).__name__}, {one_line(error)}" if str(error) else type(error).__name__


def _known_cause(error: Exception, config: DataParserConfig) -> Optional[str]:
    """A sentence on a failure that a user can do something about; None for any other."""
    if isinstance(error, NotImplementedError) and str(error).endswith("camera model is not supported yet!"):
        return str(unsupported_camera_model(str(error).split()[0]))
    if _asked(error):
        return (
            "nerfstudio asks here whether to scale the images down, and there is no terminal to answer; give "
            "--downscale-factor 1 after the dataparser's name, or make the folder of smaller images first."
        )
    if _colmap_folder(config) is not None and isinstance(error, KeyError) and isinstance(error.args[0], int):
        return f"An image of the COLMAP model has the camera {error}, which is not there."
    meta = _transforms(config)
    if isinstance(error, KeyError) and error.args[0] == meta.get("camera_model"):
        return str(unsupported_camera_model(f"{error.args[0]} (camera_model in transforms.json)"))
    for frame in meta.get("frames", []):
        try:
            shape = np.shape(frame["transform_matrix"])
        except (ValueError, TypeError, KeyError):
            continue
        if shape != (4, 4):
            size = "x".join(map(str, shape)) or "a single value"
            what = f"The transform_matrix of {frame.get('file_path', 'a frame')} is {size} and should be 4x4"
            return what + ("; add [0, 0, 0, 1] as its last row." if shape == (3, 4) else ".")
    return None


def _transforms(config: DataParserConfig) -> Dict[str, Any]:
    """The content of transforms.json, as far as it can be read."""
    try:
        data = Path(config.data)
        meta = json.loads((data if data.suffix == ".json" else data / "transforms.json").read_text(encoding="utf-8"))
        frames = [frame for frame in meta["frames"] if isinstance(frame, dict)]
    except Exception:  # which is why it was not read in the first place
        return {}
    return {**meta, "frames": frames}


# -- before and after the dataparser -----------------------------------------------------------------------------------


def _colmap_folder(config: DataParserConfig) -> Optional[Path]:
    """Where a dataparser looks for a COLMAP model; None if it reads none."""
    from nerfstudio.data.dataparsers.phototourism_dataparser import PhototourismDataParserConfig

    if isinstance(config, PhototourismDataParserConfig):
        return Path(config.data) / "dense" / "sparse"
    if hasattr(config, "colmap_path"):
        return Path(config.data) / config.colmap_path
    return None


def check_before_reading(config: DataParserConfig) -> None:
    """Refuses what a dataparser would take on trust. Raises HashPoseError or OSError."""
    folder = _colmap_folder(config)
    if folder is not None and folder.is_dir():
        check_colmap_model(folder, with_points=getattr(config, "load_3D_points", True))


def check_scale(config: DataParserConfig, outputs: DataparserOutputs) -> None:
    """Raises ZeroDivisionError where the scale that centres were divided by is rounding."""
    if getattr(config, "auto_scale_poses", False):
        shift = float(outputs.dataparser_transform[:, 3].abs().max())
        if shift * outputs.dataparser_scale * COINCIDE > getattr(config, "scale_factor", 1.0):
            raise ZeroDivisionError


def way_round(error: Exception, config: DataParserConfig) -> Optional[str]:
    """Changes the dataparser's settings where another choice reads what failed.

    Returns:
        What was chosen, for the console; None if there is no way round.
    """
    settings: Any = config
    if _asked(error) and getattr(config, "downscale_factor", 1) is None:
        settings.downscale_factor = 1
        return "There are no smaller images, and no terminal to ask in: the images are used at full size."
    if isinstance(error, ZeroDivisionError) and getattr(config, "auto_scale_poses", False):
        settings.auto_scale_poses = False
        return "All cameras are in one place, so that the scene has no scale: auto_scale_poses is off."
    return None


def _asked(error: Exception) -> bool:
    """Whether nerfstudio put a question on the console that nobody can answer."""
    return str(error) in ("EOF when reading a line", "input(): lost sys.stdin")


def held_out_outputs(dataparser: DataParser, split: str, train: DataparserOutputs) -> Tuple[str, DataparserOutputs]:
    """The held-out images: those of a split, or of the other one ("val", "test") where the data have no such split, or
    none.

    Returns:
        The split, and the dataparser's outputs.
    """
    for candidate in (split, "test" if split == "val" else "val"):
        try:
            outputs = dataparser.get_dataparser_outputs(split=candidate)
        except Exception as error:
            if not _has_no_split(error):
                raise
            continue
        if candidate != split:
            names = {"val": "validation", "test": "test"}
            CONSOLE.print(f"The data has no {names[split]} split; its {names[candidate]} images are held out instead.")
        return candidate, _with_poses_of_a_single_image(dataparser, outputs)
    CONSOLE.print("The data has neither a validation nor a test split; no image is held out.")
    return split, dataclasses.replace(train, image_filenames=[], mask_filenames=None, cameras=train.cameras[:0])


def _has_no_split(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError):
        return str(error.filename).endswith(".json")  # and not a missing image
    return isinstance(error, RuntimeError) and str(error).startswith("The dataset's list of filenames for split")


def _with_poses_of_a_single_image(dataparser: DataParser, outputs: DataparserOutputs) -> DataparserOutputs:
    """instant-ngp-data of nerfstudio 1.1.5 takes the pose of a single held-out image apart; among all images it is
    whole."""
    if len(outputs.image_filenames) != 1 or outputs.cameras.camera_to_worlds.shape == (1, 3, 4):
        return outputs
    config: Any = dataclasses.replace(dataparser.config, eval_mode="all")  # type: ignore[call-arg]
    everything = config.setup().get_dataparser_outputs(split="train")
    index = everything.image_filenames.index(outputs.image_filenames[0])
    return dataclasses.replace(outputs, cameras=everything.cameras[index : index + 1])


class NamedImages(InputDataset):
    """nerfstudio's dataset, whose errors name the image."""

    def get_data(self, image_idx: int, image_type: Any = "float32") -> Dict:
        """One image with its mask. Raises HashPoseError if either cannot be read."""
        what = f"The image {self.image_filenames[image_idx]}"
        masks = self._dataparser_outputs.mask_filenames
        if masks is not None:
            what += f" with its mask {masks[image_idx]}"
        with reading(what):
            return super().get_data(image_idx, image_type)
