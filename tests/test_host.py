"""What is asked of the machine must be answered everywhere."""

from __future__ import annotations

import platform
import sys

import pytest
import torch

from hashpose_ns.host import has_native_bfloat16, keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_allocator_settings_are_taken_on_linux():
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
    assert torch.ones(1 << 20).sum() == 1 << 20


def test_other_systems_are_left_alone(monkeypatch):
    for system in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        assert keep_freed_memory() is False


def test_bfloat16_is_asked_of_the_device(monkeypatch):
    asked = has_native_bfloat16.__wrapped__  # what it answered before is kept
    assert asked(torch.device("meta")) is False

    def refuse(*args, **kwargs):
        raise OSError("no /proc here")

    monkeypatch.setattr("builtins.open", refuse)
    assert asked(torch.device("cpu")) is False
