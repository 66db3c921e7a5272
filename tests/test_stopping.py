"""Signals end a block where nothing is half done, a second one at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from hashpose_ns.errors import HashPoseError, exits_on_user_error
from hashpose_ns.export.replace import replaced_folder
from hashpose_ns.stopping import SIGNALS, Stopped, StopSignals, exit_on_interrupt, stops_cleanly


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_raises_at_once_and_handlers_come_back(signum):
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped:
        with StopSignals():
            os.kill(os.getpid(), signum)
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before


def test_an_interrupt_of_the_start_exits_until_there_is_something_better(capsys):
    exit_on_interrupt()
    with pytest.raises(Stopped):
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit) as exits:
        os.kill(os.getpid(), signal.SIGINT)
    assert exits.value.code == 130
    assert capsys.readouterr().err == "Stopped by SIGINT before training began.\n"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup
    exit_on_interrupt()
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_waits_while_something_is_held():
    done = []
    with pytest.raises(Stopped):
        with StopSignals() as signals:
            with signals.held():
                with signals.held():
                    os.kill(os.getpid(), signal.SIGTERM)
                    done.append("inner")
                done.append("outer")
            done.append("never")
    assert done == ["inner", "outer"]


def test_what_saves_the_state_on_the_way_out_is_let_through():
    saved = []
    with pytest.raises(Stopped):
        with StopSignals() as signals:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Stopped:
                with signals.held():
                    saved.append("state")
                raise
    assert saved == ["state"]


def test_ignored_signals_and_other_listeners_stay():
    heard = []
    for handler in (signal.SIG_IGN, lambda *_: heard.append(1)):
        before = signal.signal(signal.SIGTERM, handler)
        try:
            with StopSignals():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)
    assert heard == [1]


def test_other_threads_do_nothing():
    errors = []

    def use():
        try:
            with StopSignals():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert not errors


def test_the_second_signal_kills():
    program = """
import os, signal
from hashpose_ns.stopping import StopSignals
with StopSignals() as signals, signals.held():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("never")
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == -signal.SIGINT and process.stdout == process.stderr == ""


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_command_that_is_stopped_leaves_nothing_half_written(tmp_path, signum, capsys):
    @stops_cleanly
    @exits_on_user_error
    def export():
        with replaced_folder(tmp_path / "export") as folder:
            (folder / "half").touch()
            os.kill(os.getpid(), signum)

    with pytest.raises(SystemExit) as end:
        export()
    assert end.value.code == 128 + signum
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == f"Stopped by {signal.Signals(signum).name}.\n"


@pytest.mark.parametrize(
    "error, sentence",
    [
        (HashPoseError("One\nsentence."), "Error: One sentence."),
        (OSError(28, "No space left on device", "/x/y"), "Error: No space left on device: '/x/y'."),
        (HashPoseError("\ud800."), "Error: \\ud800."),
    ],
)
def test_errors_are_one_printable_line(error, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        fail(error)
    captured = capsys.readouterr()
    assert end.value.code == 1 and captured.out == sentence + "\n" and captured.err == ""


def test_the_traceback_can_be_had_with_its_causes(capsys, monkeypatch):
    monkeypatch.setenv("HASHPOSE_DEBUG", "1")
    with pytest.raises(SystemExit):
        try:
            [][3]
        except IndexError as cause:
            error = HashPoseError("A sentence.")
            error.__cause__ = cause
            fail(error)
    captured = capsys.readouterr()
    assert captured.out == "Error: A sentence.\n"
    assert "Traceback" in captured.err and "IndexError: list index out of range" in captured.err


@exits_on_user_error
def fail(error):
    raise error
