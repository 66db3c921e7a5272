"""How large a capture's pictures are, from its files alone, before anything is set up."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Tuple

from nerfstudio.utils.io import load_from_json

LISTS = ("transforms_train.json", "transforms.json")
"""Files that name a capture's pictures: Blender's, and nerfstudio's."""


def shorter_side(data: Path) -> Optional[int]:
    """Pixels of the shorter side of a capture's first picture.

    Args:
        data: the capture's folder or its transforms.json, as `--data` takes it.
    Returns:
        The number; None where no picture is found. Whoever reads the capture afterwards says why.
    """
    try:
        return next((min(size) for size in _sizes(data)), None)
    except Exception:  # whatever the files hold
        return None


def _sizes(data: Path) -> Iterator[Tuple[int, int]]:
    for path in [data] if data.suffix == ".json" else [data / name for name in LISTS]:
        if path.is_file():
            meta = load_from_json(path)
            frame = meta["frames"][0]
            said = {**meta, **frame}
            if "w" in said and "h" in said:
                yield int(said["w"]), int(said["h"])
            picture = path.parent / frame["file_path"]
            yield _size(picture if picture.suffix else picture.with_suffix(".png"))
    for picture in sorted((data / "images").glob("*.*")):
        yield _size(picture)


def _size(picture: Path) -> Tuple[int, int]:
    from PIL import Image

    with Image.open(picture) as image:
        return image.size
