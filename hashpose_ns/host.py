"""What depends on the machine: allocator, bfloat16 support, the user's cache."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Union

import torch
from torch import Tensor

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Asks glibc to keep the memory of freed tensors for the next step.

    By default it returns large blocks to the kernel, which hands them out again page by page, zeroed, at a cost that
    shows in small training steps on a CPU. Does nothing where there is no glibc.

    Returns:
        Whether the allocator took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Older versions of glibc take at most 32 MiB.
    mapped = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, 1 << 30) and mallopt(M_TOP_PAD, 1 << 26))


def user_cache() -> Path:
    """The folder of this package in the user's cache, `$XDG_CACHE_HOME/hashpose`; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")) / "hashpose"


def sent(tensor: Tensor, device: Union[torch.device, str]) -> Tensor:
    """A tensor on a device. From the CPU to a GPU it goes through pinned memory, and Python does not wait for it: a
    copy from other memory waits until the GPU has done all that it was asked before."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@functools.lru_cache(maxsize=None)  # fields ask at every pass
def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            flags = next((line for line in cpuinfo if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return "bf16" in flags
