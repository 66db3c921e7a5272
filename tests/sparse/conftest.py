"""What tests of SparsePose share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hashpose_ns.sparse.network import SparsePoseNet
from hashpose_ns.sparse.settings import NetworkConfig
from hashpose_ns.sparse.weights import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Of a tiny network, untrained."""
    torch.manual_seed(0)
    network = SparsePoseNet(NetworkConfig(size=32, width=32, layers=1, hidden=32, points=16, steps=2))
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    save_weights(path, network, {"step": 0})
    return path
