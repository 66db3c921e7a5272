"""SIGINT, SIGTERM and SIGHUP as an exception that comes when nothing is half done."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable)

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal asked the process to end. No `Exception`, so that nothing takes it for an error to recover from."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.name = signal.Signals(signum).name
        self.exit_code = 128 + signum
        """What a shell reports for a process that the signal ended."""


class StopSignals:
    """Within its `with` block, raises `Stopped` in the main thread when a signal comes, or as soon as nothing is held.
    A second signal ends the process at once. Signals that are ignored (nohup) or that have another handler
    (submitit) stay so, and in other threads than the main one the block does nothing."""

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._held = 0
        self._raised = False
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler, _exit):
                    self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
        self._held = 0

    def hold(self) -> None:
        """From here on a signal waits, until as many calls of `let_go`."""
        self._held += 1

    def let_go(self) -> None:
        """Raises `Stopped` if a signal has waited for this."""
        self._held = max(self._held - 1, 0)
        if self.received is not None and not self._raised:
            self._raise_unless_held(self.received)

    @contextmanager
    def held(self) -> Iterator[None]:
        """`hold`, and `let_go` where the block ends without an exception."""
        self.hold()
        yield
        self.let_go()

    def _receive(self, signum: int, frame: Any) -> None:
        if self.received is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signum
        self._raise_unless_held(signum)

    def _raise_unless_held(self, signum: int) -> None:
        if not self._held:
            self._raised = True  # once: what saves the state on the way out is let through
            raise Stopped(signum)


def exit_on_interrupt() -> None:
    """From here on Ctrl-C ends the process in a line and with exit code 130, unless `StopSignals` do better. For the
    start of training, where nerfstudio lets the exception that Python raises end in a traceback, or swallows it."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _exit)


def _exit(signum: int, frame: Any) -> None:
    print("Stopped by SIGINT before training began.", file=sys.stderr)
    sys.exit(128 + signum)


def run_in_session(command: Sequence[str], environment: Optional[Dict[str, str]] = None) -> int:
    """Runs a command in a session of its own, and returns its exit code. There it gets one signal, from here; a second
    one from the terminal would kill it.

    Args:
        command: program and arguments.
        environment: its environment; this process' if None.

    Raises:
        Stopped: a signal came, which the command got as well. It has ended, and has saved what there was.
    """
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            return process.wait()
        except Stopped as stopped:
            process.send_signal(stopped.signum)
            process.wait()
            raise


@contextmanager
def keeps_handlers() -> Iterator[None]:
    """What signals do to the process is after the block what it was before. pycolmap's import has them print a stack
    trace first, behind Python's back, so `signal.getsignal` knows nothing of it. Works in any thread."""
    try:
        sigaction = ctypes.CDLL(None).sigaction
    except (OSError, AttributeError, TypeError):  # Windows
        yield
        return
    before = {}
    for signum in signal.valid_signals():
        handler = ctypes.create_string_buffer(1024)  # larger than any system's struct sigaction
        if sigaction(int(signum), None, handler) == 0:
            before[int(signum)] = handler
    try:
        yield
    finally:
        for number, handler in before.items():
            sigaction(number, handler, None)


def stops_cleanly(function: FunctionT) -> FunctionT:
    """For a command's entry point: a signal ends it with the exit code that shells give, without a traceback, after
    whatever is being written has been cleared away."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            with StopSignals():
                return function(*args, **kwargs)
        except Stopped as stopped:
            print(f"Stopped by {stopped.name}.", file=sys.stderr)
            sys.exit(stopped.exit_code)

    return wrapper  # type: ignore
