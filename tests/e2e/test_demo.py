"""`hashpose-demo`, short: every step of it runs and leaves what it announces."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from commands import succeed
from PIL import Image

DEMO = """
import sys
from rich.console import Console
from hashpose_ns.demo import Demo
from hashpose_ns.stopping import stops_cleanly
stops_cleanly(lambda: Demo._run(Console(), ["python", "-c", sys.argv[1]]))()
"""
TRAINING = """
import signal, sys
def save(signum, frame):
    signal.signal(signum, signal.SIG_DFL)  # a second one would kill
    print("saved", flush=True)
    sys.exit(3)
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, save)
print("trains", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("whole_group", [False, True], ids=["by kill", "by the terminal"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_lets_training_save(signum, whole_group):
    command = [sys.executable, "-c", DEMO, TRAINING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as demo:
        while "trains" != demo.stdout.readline().strip():
            pass
        (os.killpg if whole_group else os.kill)(demo.pid, signum)
        printed = demo.stdout.read()
    assert demo.returncode == 128 + signum
    assert printed == f"saved\nStopped by {signal.Signals(signum).name}.\n"


def test_demo_leaves_what_it_announces(tmp_path):
    with socket.socket() as probe:  # a free port for the viewer, which the demo keeps on
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = tmp_path / "out"
    (output / "chair" / "hashpose-object" / "demo").mkdir(parents=True)
    stale = output / "chair" / "hashpose-object" / "demo" / "pose_errors.jsonl"
    stale.write_text("left by an earlier demo\n")

    printed = succeed("hashpose-demo", "--output-dir", output, "--steps", 2, "--viewer-port", port)

    assert printed.count(f"http://127.0.0.1:{port}") > 1  # by the demo and by training
    results = json.loads((output / "results.json").read_text())["results"]
    assert f"{results['pose_error_before_rotation_deg_mean']:.2f}" in printed
    assert f"{results['pose_error_after_rotation_deg_mean']:.2f}" in printed
    assert results["pose_error_before_rotation_deg_mean"] > 10.0
    steps = [json.loads(line)["step"] for line in stale.read_text().splitlines()]
    assert steps[0] == 0 and steps[-1] == 1
    for picture in ("cameras.png", "pose_errors.png", "photograph_and_render.png"):
        with Image.open(output / picture) as image:
            assert image.width > 200, picture
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 20, f"{picture} shows nothing"
        assert str(output / picture) in printed
    assert sorted(file.name for file in (output / "colmap" / "sparse" / "0").iterdir()) == [
        "cameras.bin",
        "images.bin",
        "points3D.bin",
    ]
