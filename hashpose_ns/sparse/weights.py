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
    if not path.is_file():
        raise HashPoseError(f"There is no file {path}; --weights takes the weights.npz of hashpose-sparse train.")
    try:
        with np.load(path, allow_pickle=False) as file:
            note = json.loads(str(file[NOTE]))
            network = SparsePoseNet(NetworkConfig(**note["network"]))
            state = {}
            for name, value in network.state_dict().items():
                array = torch.from_numpy(file[name])
                if array.shape != value.shape or not array.isfinite().all():
                    raise ValueError(f"{name} does not fit")
                state[name] = array.to(value.dtype)
    except Exception as error:  # of zip files, JSON, arrays, sizes
        raise HashPoseError(
            f"{path} holds no weights of this network ({one_line(error)}); train them again."
        ) from error
    network.load_state_dict(state)
    return network.eval(), note
