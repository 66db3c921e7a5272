"""`hashpose-demo`, short: every step of it runs and leaves what it announces."""

from __future__ import annotations

import json
import socket

from commands import succeed
from PIL import Image


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
