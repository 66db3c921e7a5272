"""Fixtures of the encoding's tests: every test that takes ``backend`` runs on every backend this machine has."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, Tuple

import pytest
import torch
from small_encoding import CASES, make_encoding

from hashpose_ns.encoding import SmoothedHashEncoding, backends
from hashpose_ns.encoding.backends import get_backend
from hashpose_ns.encoding.triton import interpreted

collect_ignore = [] if interpreted() else ["test_encoding_triton_interpreted.py"]  # test_encoding_triton.py runs it


# What of the tests of all backends is worth its time in the interpreter, beside test_encoding_triton_interpreted.py.
SHARED = """
    test_smoothing_readings_coincide_in_one_dimension
    test_gradients_are_computed_only_where_required
    test_half_precision_points
    test_outside_the_box and axis
    test_vertices_and_faces
    test_empty_batch
    test_batch_shapes_and_strides
    test_nan_stays_with_its_point
    test_the_papers_finest_level
    test_settings_can_change_on_a_trained_encoding
    test_training_ends_at_the_same_losses_and_poses
""".split("\n")


@pytest.fixture(scope="session", autouse=True)
def in_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Tuple[int, str]]]:
    """Runs tests inside of Triton's interpreter, in a process that starts with the first test of this folder and runs
    beside the others; what is returned waits for its exit code and output. Triton decides when it is imported whether
    it interprets."""
    if interpreted() or importlib.util.find_spec("triton") is None:
        yield lambda: (1, "")
        return
    chosen = " or ".join(f"({line.strip()})" for line in SHARED if line.strip())
    files = ("against_oracle", "behaviour", "training", "triton_interpreted")
    command = [
        *(sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"),
        *("-o", "addopts=", "--color=no"),  # the project's -q would leave out the summary, if given another
        *("-k", f"interpreted or (triton and cpu and ({chosen}))"),
        *(str(Path(__file__).parent / f"test_encoding_{name}.py") for name in files),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    printed = tmp_path_factory.mktemp("interpreter") / "output.txt"
    with open(printed, "w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def wait() -> Tuple[int, str]:
        return process.wait(), printed.read_text()

    yield wait
    if process.poll() is None:  # its test was not among those asked for
        process.kill()
        process.wait()


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
