"""Reads checkpoints; everything in them is validated first.

A checkpoint comes from a disk that was full, from another machine, or from a stranger. What torch and nerfstudio do not
check is checked here, as the fused Adam writes past the end of moments that are too short.
"""

from __future__ import annotations

import math
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.runs.files import checkpoints

PARTS = ("pipeline", "optimizers", "schedulers", "scalers")
"""What a checkpoint holds beside its `step`."""
RIGID_TOLERANCE = 1e-2
"""How far R^T R of a pose may be from the identity. Input is checked more closely; this finds poses that are none."""
LARGEST = 1e3
"""Largest distance of a start pose or correction, in units of the reference cameras' distance from the origin plus one,
and largest rotation of a correction in radians."""
ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
"""What Adam and its variants remember of a parameter."""


class DamagedCheckpoint(HashPoseError):
    """A checkpoint that cannot be used, whatever the run's settings are."""


def read_checkpoint(path: Path) -> Dict[str, Any]:
    """The content of a checkpoint, on the CPU, whole and plausible in itself.

    Checked are the archive's checksums, that it holds nothing but numbers, the parts that nerfstudio writes, that all
    numbers are finite, and that poses and corrections are possible ones. Whether it fits a run is for
    `HashPosePipeline.load_pipeline` and `check_training_state` to say.

    Returns:
        `step`, at least 0; `pipeline`, tensors by name; `optimizers`, `schedulers` and `scalers`. The tensors lie in
        the mapped file, so whoever keeps one copies it, as `load_state_dict` of a module does.

    Raises:
        DamagedCheckpoint: with the reason.
    """
    try:
        state = _load(path)
        _check_parts(state)
        _check_numbers(state)
        _check_poses(state["pipeline"])
    except Exception as error:  # whatever a damaged or foreign file makes zipfile and torch raise
        raise DamagedCheckpoint(f"The checkpoint {path} cannot be used: {_reason(error)}.") from error
    return state


def read_last_checkpoint(folder: Path) -> Optional[Dict[str, Any]]:
    """The content of the newest checkpoint in a folder; None if there is none.

    Raises:
        DamagedCheckpoint: it cannot be used. An older one that can be is named.
    """
    for path in reversed(checkpoints(folder).values()):
        with older_offered(path, "move the damaged file away to go back to it"):
            try:
                return read_checkpoint(path)
            except DamagedCheckpoint:
                if path.exists():  # training that goes on has replaced it
                    raise
    return None


@contextmanager
def older_offered(path: Path, how: str) -> Iterator[None]:
    """Where a checkpoint turns out to be damaged, adds to the sentence which older one beside it is whole.

    Args:
        path: the checkpoint.
        how: what to do to use the older one; `{older}` stands for its path.
    """
    try:
        yield
    except DamagedCheckpoint as error:
        for older in reversed(checkpoints(path.parent).values()):
            if older.name < path.name and _is_whole(older):
                said = str(error).rstrip(".")
                raise DamagedCheckpoint(f"{said}; {older} is whole: {how.format(older=older)}.") from error
        raise


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
        return True
    except DamagedCheckpoint:
        return False


def _reason(error: Exception) -> str:
    """Why it cannot be used, as the end of a sentence."""
    import pickle

    if isinstance(error, HashPoseError):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to switch the check off
        return "it holds something other than numbers"
    return f"it is damaged ({one_line(error)})"


def _load(path: Path) -> Any:
    """What is in the file, once every byte of it agrees with its checksum; torch does not look at them."""
    import torch

    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise HashPoseError(f"it is {'cut off, or no checkpoint' if path.stat().st_size else 'empty'}")
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise HashPoseError("it is compressed, as torch.save leaves none")
            damaged = archive.testzip()
        if damaged is not None:
            raise HashPoseError(f"it is damaged, as the checksum of {damaged} is wrong")
        with torch.serialization.safe_globals(_numpy_numbers()):
            try:  # mapped, which copies nothing: that pays for the checksums
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # on a file system without maps
                file.seek(0)
                return torch.load(file, map_location="cpu", weights_only=True)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            raise HashPoseError("it was replaced while it was read")
        return state


def _numpy_numbers() -> List[Any]:
    """What makes a number of NumPy. nerfstudio's own schedules leave some in their state."""
    import numpy as np

    scalar = np.float64(0.0).__reduce__()[0]
    return [scalar, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]


def _check_parts(state: Any) -> None:
    """Raises HashPoseError where it is not what nerfstudio writes."""
    if not isinstance(state, dict):
        raise HashPoseError(f"it holds a {type(state).__name__}, not the state of a training")
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise HashPoseError(f"its step is {step!r}")
    for part in PARTS:
        if not isinstance(state.get(part), dict):
            raise HashPoseError(f"it has no {part}" if part not in state else f"its {part} are a {state[part]!r:.40}")
    for name, optimizer in state["optimizers"].items():
        moments = optimizer.get("state") if isinstance(optimizer, dict) else None
        groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
        if not isinstance(moments, dict) or not all(isinstance(moment, dict) for moment in moments.values()):
            raise HashPoseError(f"its optimizer {name!r:.40} has no state")
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise HashPoseError(f"its optimizer {name!r:.40} has no parameter groups")


def _check_numbers(state: Dict[str, Any]) -> None:
    """Raises HashPoseError at a tensor that is none, or not finite."""
    for key, value in state["pipeline"].items():
        _check_tensor(key, value)
    for name, optimizer in state["optimizers"].items():
        for moments in optimizer["state"].values():
            for moment, value in moments.items():
                _check_tensor(f"optimizers.{name}.{moment}", value)


def _check_tensor(name: Any, value: Any) -> None:
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise HashPoseError(f"its entry {name!r:.80} is not a tensor")
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_neg() or value.is_quantized:
        raise HashPoseError(f"its entry {name} is not a plain tensor")
    # The sum is finite where all are, unless they are huge; it is several times faster to ask
    if value.is_floating_point() and not math.isfinite(value.sum()) and not bool(torch.isfinite(value).all()):
        raise HashPoseError(f"its entry {name} is not finite")
    if name.startswith("_model.") and not value.is_floating_point() and value.numel() and int(value.min()) < 0:
        raise HashPoseError(f"its entry {name} is negative")  # counts, all of them


def _check_poses(pipeline: Mapping[str, Any]) -> None:
    """Raises HashPoseError where the poses of a model that refines some, or their corrections, are impossible."""
    import torch

    found = {key.rpartition("camera_optimizer.")[2]: value for key, value in pipeline.items() if "_model." in key}
    start, reference = (found.get(f"{name}_camera_to_worlds") for name in ("initial", "reference"))
    if start is None or reference is None:  # of another method
        return
    if start.ndim != 3 or start.shape[1:] != (3, 4) or start.shape != reference.shape or not len(start):
        raise HashPoseError(f"its poses are {tuple(start.shape)} and {tuple(reference.shape)} numbers")
    for what, poses in (("start", start.double()), ("reference", reference.double())):
        rotations = poses[..., :3]
        off = (rotations @ rotations.mT - torch.eye(3, dtype=torch.double)).abs().amax(dim=(1, 2))
        wrong = (off > RIGID_TOLERANCE) | (torch.linalg.det(rotations) < 0)
        if wrong.any():
            raise HashPoseError(f"the {what} pose of camera {int(wrong.int().argmax())} is not rigid")
    reach = LARGEST * (1 + float(reference[..., 3].double().norm(dim=-1).max()))
    _check_size("start pose", start[..., 3], reach)
    twists = found.get("pose_adjustment")
    if twists is not None:
        if twists.shape != (len(start), 6):
            raise HashPoseError(f"its corrections of poses are {tuple(twists.shape)} numbers")
        _check_size("correction", twists[:, :3], reach)
        _check_size("correction", twists[:, 3:], LARGEST)
    rate = found.get("fallen_back")
    if rate is not None and not (rate.shape == () and 0 <= float(rate) <= 1):
        raise HashPoseError("its factor on the poses' learning rate is not between 0 and 1")


def _check_size(what: str, values: Any, largest: float) -> None:
    sizes = values.double().norm(dim=-1)
    if float(sizes.max()) > largest:
        worst = int(sizes.argmax())
        raise HashPoseError(f"the {what} of camera {worst} is impossibly large ({float(sizes[worst]):.2g})")


# -- optimizers and schedules ------------------------------------------------------------------------------------------


def check_training_state(
    path: Path, state: Dict[str, Any], optimizers: Mapping[str, Any], schedulers: Mapping[str, Any]
) -> None:
    """Checks what a run's optimizers and schedules are about to take from a checkpoint against what they are.

    How Adam computes (fused, capturable, ...) belongs to a process and not to a checkpoint: in `state` those settings
    are replaced by the optimizers' own. What optimizers keep is copied there out of the file.

    Args:
        path: the checkpoint.
        state: its content, by `read_checkpoint`.
        optimizers: the run's, by name.
        schedulers: the run's, by name; empty if they are not to be loaded.

    Raises:
        DamagedCheckpoint: with the reason.
    """
    try:
        _check_names("optimizers", state["optimizers"], optimizers)
        for name, optimizer in optimizers.items():
            _check_optimizer(name, state["optimizers"][name], optimizer, state["step"])
        if schedulers:
            _check_names("schedulers", state["schedulers"], schedulers)
        for name, scheduler in schedulers.items():
            state["schedulers"][name] = _schedule(name, state["schedulers"][name], scheduler, state["step"])
        for name, value in state["scalers"].items():
            if not _is_like(value, 1.0) or not value >= 0:
                raise HashPoseError(f"its gradient scaler's {name!r:.40} is {value!r:.40}")
    except HashPoseError as error:
        raise DamagedCheckpoint(f"The checkpoint {path} cannot be used: {error}.") from error


def _check_names(what: str, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if set(saved) != set(ours):
        raise HashPoseError(f"its {what} are those of {sorted(map(str, saved))}, and this run's of {sorted(ours)}")


def _check_optimizer(name: str, saved: Dict[str, Any], optimizer: Any, step: int) -> None:
    """Shapes, types and strides of an optimizer's memory against its parameters', and its settings."""
    groups = optimizer.param_groups
    sizes = [
        [len(group["params"]) for group in groups],
        [len(group.get("params", ())) for group in saved["param_groups"]],
    ]
    indices = [index for group in saved["param_groups"] for index in group.get("params", ())]
    if sizes[0] != sizes[1] or indices != list(range(len(indices))):
        raise HashPoseError(f"its optimizer {name} has other parameters")
    for loaded, group in zip(saved["param_groups"], groups):
        for setting, value in group.items():
            if setting == "params":
                continue
            if isinstance(value, bool) or value is None or setting not in loaded:
                loaded[setting] = value
            elif not _is_like(loaded[setting], value):
                raise HashPoseError(f"its optimizer {name} has {setting} {loaded[setting]!r:.40}")
    parameters = dict(enumerate(parameter for group in groups for parameter in group["params"]))
    if not set(saved["state"]) <= set(parameters):
        raise HashPoseError(f"its optimizer {name} has state for parameters that do not exist")
    for index, moments in saved["state"].items():
        if "betas" in optimizer.defaults and set(moments) != ADAM_STATE:
            raise HashPoseError(f"its optimizer {name} has the state {sorted(map(str, moments))}")
        for moment, value in moments.items():
            what = f"{moment} of parameter {index} in its optimizer {name}"
            if moment == "step":
                if value.shape != () or not 0 <= float(value) <= step + 1:
                    raise HashPoseError(f"{what} is wrong")
                moments[moment] = value.clone()
                continue
            parameter = parameters[index]
            if (value.shape, value.dtype, value.stride()) != (parameter.shape, parameter.dtype, parameter.stride()):
                raise HashPoseError(
                    f"{what} is {value.dtype} {tuple(value.shape)}, the parameter {parameter.dtype} "
                    f"{tuple(parameter.shape)}"
                )
            if moment == "exp_avg_sq" and value.numel() and float(value.min()) < 0:
                raise HashPoseError(f"{what} is negative")
            moments[moment] = value.clone()


def _schedule(name: str, saved: Any, scheduler: Any, step: int) -> Dict[str, Any]:
    """Those entries of a saved schedule that this one has; torch would take any attribute from it."""
    ours = scheduler.state_dict()
    if not isinstance(saved, dict) or not {"last_epoch", "base_lrs"} <= set(saved):
        raise HashPoseError(f"its schedule {name} has no steps or no rates")
    for key, value in ours.items():
        if key in saved and value is not None and not _is_like(saved[key], value):
            raise HashPoseError(f"its schedule {name} has {key} {saved[key]!r:.40}")
    if not 0 <= saved["last_epoch"] <= step + 1:
        raise HashPoseError(f"its schedule {name} is at step {saved['last_epoch']}")
    return {key: saved.get(key, value) for key, value in ours.items()}


def _is_like(value: Any, ours: Any) -> bool:
    """Whether a value from a checkpoint can stand where this one is: a finite number, a list of as many, the same."""
    if isinstance(ours, (list, tuple)):
        return isinstance(value, (list, tuple)) and len(value) == len(ours) and all(map(_is_like, value, ours))
    if isinstance(ours, bool) or not isinstance(ours, (int, float)):
        return type(value) is type(ours)
    return type(value) in (int, float) and math.isfinite(value) and not (type(ours) is int and type(value) is float)
