"""Loading a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hashpose_ns.errors import HashPoseError
from hashpose_ns.runs.files import checkpoints


def load_trained_pipeline(
    load_config: Path, load_points: bool = False, test_mode: Literal["inference", "val"] = "inference"
) -> Any:
    """Load a run in nerfstudio's inference mode, with the images at full resolution, or as it was trained.

    Args:
        load_config: the run's config.yml. The checkpoint is looked for beside it, wherever the run was moved to and
            whatever the current folder is.
        load_points: ask the dataparser for the input's 3-D points where it has a setting for that.
        test_mode: `val` reads the images as training did.

    Returns:
        The run's pipeline, with the last checkpoint loaded. Its `scene` is a
        `hashpose_ns.photometry.scene.PosedScene`.

    Raises:
        HashPoseError: if the config, the checkpoint or the dataset is not there, or the method refines no poses.
    """
    if not load_config.is_file():
        raise HashPoseError(f"There is no file {load_config}; --load-config takes the config.yml of a trained run.")
    run = load_config.resolve().parent

    def adapt(config: Any) -> Any:
        # The checkpoint's place is put together from these four, as they were at training time
        config.output_dir = run.parent.parent.parent
        config.experiment_name, config.method_name, config.timestamp = run.parent.parent.name, run.parent.name, run.name
        if config.get_base_dir().resolve() != run or not checkpoints(config.get_checkpoint_dir()):
            raise HashPoseError(f"There is no checkpoint of the run in {run / config.relative_model_dir}.")
        datamanager = config.pipeline.datamanager
        data = datamanager.data if datamanager.data is not None else datamanager.dataparser.data
        if not Path(data).exists():
            raise HashPoseError(
                f"The dataset of the run, {data}, is not there; if that is a relative path, start the export from the "
                "folder the training was started from."
            )
        config.pipeline.run_folder = run
        # In inference mode nerfstudio sets this on the dataparser, which colmap's does not read
        if test_mode == "inference" and hasattr(datamanager.dataparser, "downscale_factor"):
            datamanager.dataparser.downscale_factor = 1
        if hasattr(datamanager.dataparser, "load_3D_points"):
            datamanager.dataparser.load_3D_points = load_points and _has_points(datamanager.dataparser, Path(data))
        return config

    from nerfstudio.utils.eval_utils import eval_setup

    pipeline = eval_setup(load_config, test_mode=test_mode, update_config_callback=adapt)[1]
    if not hasattr(pipeline, "scene"):
        raise HashPoseError(
            f"{type(pipeline.model).__name__} has no refined poses; train with one of the hashpose methods."
        )
    return pipeline


def _has_points(dataparser: Any, data: Path) -> bool:
    """Whether a dataparser can load points without asking questions: nerfstudio-data offers to rewrite a dataset that
    lists none."""
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
    from nerfstudio.utils.io import load_from_json

    if not isinstance(dataparser, NerfstudioDataParserConfig):
        return True
    return "ply_file_path" in load_from_json(data if data.suffix == ".json" else data / "transforms.json")
