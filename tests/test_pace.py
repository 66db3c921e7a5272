"""What a CPU is told about hours that lie ahead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hashpose_ns import methods, trainer
from hashpose_ns.trainer import PACE_FROM, PACE_UNTIL, HashPoseTrainer, time_ahead


@pytest.mark.parametrize(
    "seconds, steps, said",
    [
        (1.0, 3599, None),
        (1.0, 3600, "At 1 s a step, 3600 steps take 1 hour"),
        (1.26, 30_000, "At 1.3 s a step, 30000 steps take 10 hours"),
    ],
)
def test_hours_are_told_and_minutes_are_not(seconds, steps, said):
    assert time_ahead(seconds, steps) == said


@pytest.mark.parametrize("start", [0, 100], ids=["new", "resumed"])
def test_the_pace_is_that_of_steps_after_the_first(monkeypatch, start):
    said = []
    monkeypatch.setattr(trainer.CONSOLE, "print", lambda sentence, **_: said.append(sentence))
    config = methods.hashpose.config
    run = SimpleNamespace(config=config, _start_step=start, total_steps=start + 10_000, timed_from=None)
    for step in range(PACE_UNTIL + 10):
        run.train_seconds = 100.0 + 2.0 * step  # the first step took long
        HashPoseTrainer._say_how_long(run, start + step)
    assert len(said) == 1 and said[0].startswith("At 2 s a step, ") and "hashpose-small" in said[0]
    assert PACE_FROM > 0


def test_methods_that_are_sent_to_exist():
    names = {getattr(methods, name).config.method_name for name in ("small", "object_")}
    assert {getattr(methods, name).config.cpu_method for name in ("hashpose", "blender", "llff")} == names
    assert methods.small.config.cpu_method is None and methods.object_.config.cpu_method is None
