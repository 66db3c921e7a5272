"""Loading a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.runs.checkpoint import read_last_checkpoint
from hashpose_ns.runs.config import read_config


def load_trained_pipeline(
    load_config: Path,
    load_points: bool = False,
    test_mode: Literal["inference", "val"] = "inference",
    any_method: bool = False,
) -> Any:
    """Load a run in nerfstudio's inference mode, with the images at full resolution, or as it was trained.

    Neither the config nor the checkpoint can run code, see `read_config` and `read_checkpoint`.

    Args:
        load_config: the run's config.yml. The checkpoint is looked for beside it, wherever the run was moved to and
            whatever the current folder is.
        load_points: ask the dataparser for the input's 3-D points where it has a setting for that.
        test_mode: `val` reads the images as training did.
        any_method: take runs of other methods too. Their pipelines have no `scene`, and nerfstudio loads their
            checkpoints.

    Returns:
        The run's pipeline, with the last checkpoint loaded. Its `scene` is a
        `hashpose_ns.photometry.scene.PosedScene`.

    Raises:
        HashPoseError: if the config, the checkpoint or the dataset is not there or damaged, or the method refines no
            poses.
    """
    if not load_config.is_file():
        raise HashPoseError(f"There is no file {load_config}; --load-config takes the config.yml of a trained run.")
    run = load_config.resolve().parent
    config = read_config(load_config)
    state = read_last_checkpoint(run / config.relative_model_dir)
    if state is None:
        raise HashPoseError(f"There is no checkpoint of the run in {run / config.relative_model_dir}.")
    try:
        _adapt(config, load_points, test_mode)
        pipeline = config.pipeline.setup(device=_device(), test_mode=test_mode)
        pipeline.eval()
        if not hasattr(pipeline, "scene") and not any_method:
            raise HashPoseError(
                f"{type(pipeline.model).__name__} has no refined poses; train with one of the hashpose methods."
            )
        pipeline.config.run_folder = run
        pipeline.load_pipeline(state["pipeline"], state["step"])
    except HashPoseError:
        raise
    except Exception as error:  # settings that nothing can be built from, and whatever else nerfstudio raises
        raise HashPoseError(
            f"The run in {run} cannot be loaded with its {load_config.name}: {type(error).__name__}, {one_line(error)}."
        ) from error
    return pipeline


def _adapt(config: Any, load_points: bool, test_mode: str) -> None:
    """Makes a run's configuration one for looking at what was trained.

    Raises:
        HashPoseError: the dataset is not there.
    """
    datamanager = config.pipeline.datamanager
    data = datamanager.data if datamanager.data is not None else datamanager.dataparser.data
    if not Path(data).exists():
        raise HashPoseError(
            f"The dataset of the run, {data}, is not there; if that is a relative path, start the export from the "
            "folder the training was started from."
        )
    config.pipeline.changed_images = "warn"
    config.pipeline.run_folder = None  # the checkpoint is read already, and the run may have been moved here
    # In inference mode nerfstudio sets this on the dataparser, which colmap's does not read
    if test_mode == "inference" and hasattr(datamanager.dataparser, "downscale_factor"):
        datamanager.dataparser.downscale_factor = 1
    if hasattr(datamanager.dataparser, "load_3D_points"):
        datamanager.dataparser.load_3D_points = load_points and _has_points(datamanager.dataparser, Path(data))


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _has_points(dataparser: Any, data: Path) -> bool:
    """Whether a dataparser can load points without asking questions: nerfstudio-data offers to rewrite a dataset that
    lists none."""
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
    from nerfstudio.utils.io import load_from_json

    if not isinstance(dataparser, NerfstudioDataParserConfig):
        return True
    return "ply_file_path" in load_from_json(data if data.suffix == ".json" else data / "transforms.json")
