"""What to call images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from hashpose_ns.errors import HashPoseError
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig


def image_names(filenames: Sequence[Path]) -> List[str]:
    """File names as a person would call the images, unique among them: with as many folders as it takes."""
    names = [Path(name).name for name in filenames]
    return names if len(set(names)) == len(names) else [Path(name).as_posix() for name in filenames]


def printable(name: str) -> str:
    """A name for a message of one line: quoted with escapes where it holds what a console cannot print."""
    return name if name.isprintable() else ascii(name)


def is_utf8(name: str) -> bool:
    """Whether a name can be written as UTF-8; file systems have names that cannot."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_names(names: Sequence[str], advice: str = "rename the image") -> None:
    """Raises HashPoseError for a name that a file of a name a line, in UTF-8, cannot hold.

    Args:
        names: of images, relative to their folder.
        advice: what to do about it, as the end of the sentence.
    """
    for name in names:
        if name.splitlines() != [name]:
            raise HashPoseError(f"The image name {ascii(name)} has a line break in it; {advice}.")
        if not is_utf8(name):
            raise HashPoseError(f"The image name {ascii(name)} is not UTF-8; {advice}.")


def images_folder(config: DataParserConfig) -> Optional[Path]:
    """The folder inside the dataset that a dataparser's image names are relative to, where it knows one."""
    from nerfstudio.data.dataparsers.phototourism_dataparser import PhototourismDataParserConfig

    if isinstance(config, PhototourismDataParserConfig):
        return Path("dense/images")
    for setting in ("images_path", "images_dir"):  # of colmap and scannetpp-data
        if isinstance(getattr(config, setting, None), Path):
            return getattr(config, setting)
    return None


def image_folder_and_names(
    image_filenames: Sequence[Path], data: Path, images_path: Optional[Path] = None
) -> Tuple[Path, List[str]]:
    """Name images as COLMAP does: relative to one folder, sub-folders kept.

    Args:
        image_filenames: the images.
        data: the dataset's folder, or its transforms file.
        images_path: the images' folder inside it, where the dataparser knows one.

    Returns:
        The folder and the names: the given folder; else the folder right inside the dataset that all lie in; else the
        dataset; else, for images elsewhere, the innermost folder that holds all of them.

    Raises:
        HashPoseError: if two images would get one name.
    """
    # .absolute() rather than .resolve(): an image that is a link keeps its own name
    filenames = [Path(os.path.normpath(filename.absolute())) for filename in image_filenames]
    folder = Path(os.path.normpath((data if data.suffix != ".json" else data.parent).absolute()))
    if images_path is not None:
        folder = Path(os.path.normpath(folder / images_path))
    if not all(folder in filename.parents for filename in filenames):
        folder = Path(os.path.commonpath([filename.parent for filename in filenames]))
    elif images_path is None:
        tops = {filename.relative_to(folder).parts[0] for filename in filenames}
        if len(tops) == 1 and all(filename.parent != folder for filename in filenames):
            folder = folder / tops.pop()
    names = [filename.relative_to(folder).as_posix() for filename in filenames]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise HashPoseError(f"The image {printable(repeated[0])} is there more than once; list it once in the input.")
    return folder, names
