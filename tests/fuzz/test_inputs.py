"""A part of the fuzzer's cases; `python tests/fuzz/inputs.py` runs as many as one likes."""

from __future__ import annotations

from inputs import fuzz


def test_broken_datasets_are_refused_or_read_right():
    ends, failures = fuzz(count=70, seed=0)
    assert not failures, "\n".join(failures)
    assert {outcome for _, outcome in ends} == {"read", "refused"}
