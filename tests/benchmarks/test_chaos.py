"""Some rounds of the chaos test; `benchmarks/chaos.py` runs hundreds."""

from __future__ import annotations

from pathlib import Path

import torch


def test_kills_stops_full_disks_and_damage_end_well_and_resume_to_the_same_bits(unchecked, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from chaos import main

    failed = main(rounds=10, seed=1)
    assert failed == 0, capsys.readouterr().out
