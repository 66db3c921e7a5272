"""What a run reads of its dataset, which no export may replace."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import List

from hashpose_ns.photometry.scene import PosedImages


def dataset_files(scene: PosedImages) -> List[Path]:
    """Files and folders, as the dataparser names them: images, masks and whatever else its outputs list, the dataset's
    folder, the folders in its settings, and what lies directly in these."""
    settings = scene.dataparser.config
    data = Path(settings.data)
    folders = [data]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path) and value != data:
            folders.append(data / value)
    files = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    for outputs in (scene.train_outputs, scene.held_out_outputs):
        lists = [outputs.image_filenames, outputs.mask_filenames, *outputs.metadata.values()]
        for values in lists:
            files += [path for path in values if isinstance(path, Path)] if isinstance(values, (list, tuple)) else []
    return [*folders, *files]
