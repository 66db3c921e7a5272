"""nerfstudio-data with downscaled images: the order and the split of the full images.

It looks for a downscaled image in one flat folder (images_2) and sorts the images by these names. Where the full images
lie in several folders that is another order, and so another split, than the full images have, which exports take.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import List, Optional, Sequence

from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio


def in_full_order(dataparser: DataParser, split: str, outputs: DataparserOutputs) -> DataparserOutputs:
    """A split as it is among the full images.

    Args:
        dataparser: after it has read the split.
        split: which one.
        outputs: that it read.

    Returns:
        The outputs themselves, unless nerfstudio-data's downscaled images come in another order than the full ones.
    """
    if not isinstance(dataparser, Nerfstudio) or not outputs.image_filenames:
        return outputs
    factor = dataparser.downscale_factor or 1
    if factor == 1:
        return outputs
    config = dataparser.config
    folder = config.data.parent if config.data.suffix == ".json" else config.data
    full = dataclasses.replace(config, downscale_factor=1).setup().get_dataparser_outputs(split)

    def downscaled(filenames: Optional[Sequence[Path]], prefix: str) -> Optional[List[Path]]:
        """Where nerfstudio looks for the downscaled files."""
        if filenames is None:
            return None
        return [dataparser._get_fname(Path(filename.name), folder, prefix) for filename in filenames]

    images = downscaled(full.image_filenames, "images_") or []
    if images == outputs.image_filenames:
        return outputs
    full.cameras.rescale_output_resolution(1.0 / factor)
    full.metadata["depth_filenames"] = downscaled(full.metadata["depth_filenames"], "depths_")
    return dataclasses.replace(full, image_filenames=images, mask_filenames=downscaled(full.mask_filenames, "masks_"))
