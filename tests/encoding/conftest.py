"""Fixtures of the encoding's tests: every test that takes ``backend`` runs on every backend this machine has."""

from __future__ import annotations

import pytest
import torch
from small_encoding import make_encoding

from hashpose_ns.encoding import SmoothedHashEncoding, backends
from hashpose_ns.encoding.backends import MODULES, get_backend
from hashpose_ns.encoding.triton import interpreted


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


CASES = [(name, device) for name in MODULES for device in get_backend(name).device_types or ("cpu", "cuda")]
if interpreted():
    CASES.append(("triton", "cpu"))


@pytest.fixture(params=CASES, ids="@".join)
def backend(request: pytest.FixtureRequest) -> BackendCase:
    """One backend on one device; skips where it cannot run."""
    name, device = request.param[0], torch.device(request.param[1])
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
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

    def require(self, encoding: SmoothedHashEncoding, dtype: torch.dtype = torch.float32) -> None:
        """Skips if the backend cannot do this encoding."""
        reason = get_backend(self.name).unsupported(self.device, dtype, encoding.grid)
        if reason is not None:
            pytest.skip(f"{self.name}: {reason}")


@pytest.fixture
def log(monkeypatch):
    """The lines logged, with the memory of earlier ones wiped."""
    lines = []
    monkeypatch.setattr(backends, "_logged", set())
    monkeypatch.setattr(backends.CONSOLE, "print", lambda line, **_: lines.append(line))
    return lines
