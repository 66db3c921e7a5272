"""Weights as a file: NumPy arrays in half precision and a note, read without running anything in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from hashpose_ns.atomic import whole_file
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.sparse.network import SparsePoseNet
from hashpose_ns.sparse.settings import NetworkConfig

NOTE = "note"
PACKAGED = Path(__file__).parent / "weights" / "sparsepose.npz"
"""Weights that come with the package, if any do."""


def save_weights(path: Path, network: SparsePoseNet, note: dict[str, Any]) -> None:
    """Writes a network's weights.

    Args:
        path: the file, with the ending .npz.
        network: what to write.
        note: how it was trained; JSON-ready.
    """
    arrays = {
        name: value.detach().cpu().numpy().astype(np.float16 if value.is_floating_point() else np.int64)
        for name, value in network.state_dict().items()
    }
    arrays[NOTE] = np.array(json.dumps({"network": network.as_config(), **note}))
    with whole_file(path) as staged:
        np.savez_compressed(staged, **arrays)


def load_weights(path: Optional[Path] = None) -> tuple[SparsePoseNet, dict[str, Any]]:
    """Reads a network.

    Args:
        path: the file; by default the package's.

    Returns:
        The network in evaluation mode, and the file's note.

    Raises:
        HashPoseError: there is no such file, or it holds no such network.
    """
    if path is None and not PACKAGED.is_file():
        raise HashPoseError(
            "hashpose comes without weights of SparsePose; train them with hashpose-sparse train and give --weights."
        )
    path = PACKAGED if path is None else path
    state, note = read_weights(path)
    try:
        network = SparsePoseNet(NetworkConfig(**note["network"]))
        network.load_state_dict({name: state[name].to(value) for name, value in network.state_dict().items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise HashPoseError(
            f"{path} holds no weights of this network ({one_line(error)}); train them again."
        ) from error
    return network.eval(), note


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The arrays and the note of a file.

    Raises:
        HashPoseError: there is no such file, or it is none of `save_weights`.
    """
    if not path.is_file():
        raise HashPoseError(f"There is no file {path}; --weights takes the weights.npz of hashpose-sparse train.")
    try:
        with np.load(path, allow_pickle=False) as file:
            note = json.loads(str(file[NOTE]))
            state = {name: torch.from_numpy(file[name]) for name in file.files if name != NOTE}
        if not isinstance(note, dict) or not all(bool(value.isfinite().all()) for value in state.values()):
            raise ValueError("its content is damaged")
    except Exception as error:  # of zip files, JSON, arrays
        raise HashPoseError(
            f"{path} holds no weights of this network ({one_line(error)}); train them again."
        ) from error
    return state, note
