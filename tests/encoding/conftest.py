"""Fixtures of the encoding's tests: every test that takes ``backend`` runs on every backend this machine has."""

from __future__ import annotations

import pytest
import torch
from small_encoding import CASES, make_encoding

from hashpose_ns.encoding import SmoothedHashEncoding, backends
from hashpose_ns.encoding.backends import get_backend
from hashpose_ns.encoding.triton import interpreted

collect_ignore = [] if interpreted() else ["test_encoding_triton_interpreted.py"]  # test_encoding_triton.py runs it


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


@pytest.fixture(params=CASES, ids="@".join)
def backend(request: pytest.FixtureRequest) -> BackendCase:
    """One backend on one device; skips where it cannot run."""
    name, device = request.param[0], torch.device(request.param[1])
    reason = get_backend(name).unsupported(device, torch.float32, make_encoding(name).grid)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return BackendCase(name, device)


class BackendCase:
    """Makes encodings and points for a backend."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device

    def encoding(self, **settings) -> SmoothedHashEncoding:
        return make_encoding(self.name, **settings).to(self.device)

    def reference(self, **settings) -> SmoothedHashEncoding:
        return make_encoding("reference", **settings).to(self.device)

    def points(self, count: int, num_dims: int = 3) -> torch.Tensor:
        return torch.rand(count, num_dims).to(self.device)


@pytest.fixture
def log(monkeypatch):
    """The lines logged, with the memory of earlier ones wiped."""
    lines = []
    monkeypatch.setattr(backends, "_logged", set())
    monkeypatch.setattr(backends.CONSOLE, "print", lambda line, **_: lines.append(line))
    return lines
