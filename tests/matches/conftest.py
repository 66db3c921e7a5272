"""A cache of its own, and the command in this process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Matches are kept in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hashpose" / "matches"


@pytest.fixture
def hashpose_match(in_process):
    """hashpose-match in this process."""
    from hashpose_ns.match import entrypoint

    return lambda *arguments: in_process(entrypoint, *arguments)
