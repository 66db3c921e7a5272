"""Some rounds of the chaos test; `benchmarks/chaos.py` runs hundreds."""

from __future__ import annotations

from pathlib import Path

import torch


def test_kills_and_damage_leave_no_traceback_and_resume_to_the_same_bits(unchecked, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from chaos import main

    failed = main(rounds=4, seed=3, kinds=("killed", "damaged", "damaged"))
    assert failed == 0, capsys.readouterr().out
