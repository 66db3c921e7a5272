"""What tests of several folders share: a short run made by the real command, and the command in this process."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads of a busy machine wait for each other

import importlib.util  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Callable, Iterator, List  # noqa: E402

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import type_checker  # noqa: E402

UNCHECKED = ["hashpose_ns.encoding.triton_kernels", "hashpose_ns.field"]
"""Triton and torch.compile read the code of these functions, not what a decorator makes of them."""


def checked_modules() -> List[str]:
    """The package's modules, but for those that are packages themselves or UNCHECKED."""
    root = Path(importlib.util.find_spec("hashpose_ns").origin).parent
    paths = (path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py") if path.stem != "__init__")
    return sorted({".".join(path.parts) for path in paths} - set(UNCHECKED))


# Every call in this process has its arguments and its result checked: types, and shapes of arrays.
jaxtyping.install_import_hook(checked_modules(), "type_checker.checked")

import torch  # noqa: E402
from commands import FEW_RAYS, SMALL_FIELD, succeed  # noqa: E402
from scenes import CHAIR  # noqa: E402


@dataclass
class Run:
    """A run that ns-train has finished."""

    folder: Path
    """Where config.yml is."""
    arguments: List[str]
    """What ns-train was given, but for --output-dir."""
    output: str
    """What it printed."""
    steps: int
    """How many steps it took."""
    steps_per_save: int
    """Steps between its checkpoints."""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """hashpose-blender on the packaged chair, tiny, with evaluation on the way and poses that move early."""
    steps, steps_per_save = 200, 50
    arguments = [
        *("hashpose-blender", "--experiment-name", "chair", "--timestamp", "run", "--data", CHAIR),
        *("--pipeline.datamanager.camera-res-scale-factor", 0.32, "--vis", "tensorboard"),
        *("--max-num-iterations", steps, "--steps-per-save", steps_per_save, "--steps-per-pose-log", 20),
        *("--steps-per-eval-batch", 40, "--steps-per-eval-image", 100, "--steps-per-eval-all-images", 0),
        *("--pipeline.eval-num-images", 2, "--pipeline.tto-steps", 3, "--pipeline.tto-rays", 64),
        *SMALL_FIELD,
        *FEW_RAYS,
    ]
    arguments = [str(argument) for argument in arguments]
    folder = tmp_path_factory.mktemp("tiny")
    output = succeed("ns-train", *arguments, "--output-dir", folder)
    return Run(folder / "chair" / "hashpose-blender" / "run", arguments, output, steps, steps_per_save)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No checks of types: for stand-ins, and for what the package itself says to wrong ones."""
    with type_checker.unchecked():
        yield


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """Signals do what they do in a terminal, also where the tests run in the background and inherit ignored ones."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, signal.SIG_DFL if handler is None else handler)


@dataclass
class Outcome:
    """How a command ended in this process."""

    code: int
    output: str


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Runs a command's entry point in this process, which saves its ten seconds of start-up. An exception that it
    leaves uncaught is raised."""
    from nerfstudio.utils import profiler, writer

    def forget() -> None:
        for state in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER, profiler.PROFILER):
            state.clear()

    def command(entrypoint: Callable[[], None], *arguments) -> Outcome:
        forget()
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["/folder/command", *map(str, arguments)])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as for the commands in processes of their own
        code = 0
        try:
            entrypoint()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            forget()
        captured = capfd.readouterr()
        return Outcome(code, captured.out + captured.err)

    return command


@pytest.fixture
def ns_train(in_process: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """ns-train in this process."""
    from nerfstudio.scripts.train import entrypoint

    return lambda *arguments: in_process(entrypoint, *arguments)


@pytest.fixture
def ns_eval(in_process: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """ns-eval in this process."""
    from nerfstudio.scripts.eval import entrypoint

    return lambda *arguments: in_process(entrypoint, *arguments)
