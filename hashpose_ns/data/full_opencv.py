"""COLMAP's camera model FULL_OPENCV, as RealityScan writes it, where the model OPENCV says the same."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict

from hashpose_ns.errors import HashPoseError
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils


def as_opencv(camera: Any) -> Any:
    """A camera as nerfstudio's reader has it, in a model that nerfstudio knows.

    Raises:
        HashPoseError: it is FULL_OPENCV, and its distortion is none of OPENCV's.
    """
    if camera.model != "FULL_OPENCV":
        return camera
    if any(camera.params[8:]):  # k3 to k6
        raise HashPoseError(
            f"The camera {camera.id} of the COLMAP model is FULL_OPENCV with k3, k4, k5 or k6, which nerfstudio cannot "
            "read; undistort the images (colmap image_undistorter), or reconstruct with another model (OPENCV)."
        )
    return camera._replace(model="OPENCV", params=camera.params[:8])


class ColmapWithFullOpenCV(ColmapDataParser):
    """nerfstudio's dataparser of COLMAP models, which also reads FULL_OPENCV where it says no more than OPENCV."""

    def _get_all_images_and_cameras(self, recon_dir: Path) -> Dict[str, Any]:
        text = (recon_dir / "cameras.txt").exists()
        if not text and not (recon_dir / "cameras.bin").exists():
            return super()._get_all_images_and_cameras(recon_dir)
        read = colmap_utils.read_cameras_text if text else colmap_utils.read_cameras_binary
        suffix = ".txt" if text else ".bin"
        cameras = read(recon_dir / f"cameras{suffix}")
        if all(camera.model != "FULL_OPENCV" for camera in cameras.values()):
            return super()._get_all_images_and_cameras(recon_dir)
        write = colmap_utils.write_cameras_text if text else colmap_utils.write_cameras_binary
        with tempfile.TemporaryDirectory() as folder:  # nerfstudio takes cameras from files alone
            write({key: as_opencv(camera) for key, camera in cameras.items()}, Path(folder) / f"cameras{suffix}")
            shutil.copy(recon_dir / f"images{suffix}", folder)
            return super()._get_all_images_and_cameras(Path(folder))
