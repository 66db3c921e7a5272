"""The encoding that most tests use, and the backends that they run on."""

import pytest
import torch

from hashpose_ns.encoding import HashEncodingConfig, SmoothedHashEncoding
from hashpose_ns.encoding.backends import MODULES, get_backend
from hashpose_ns.encoding.triton import interpreted

CASES = [
    (name, device)
    for name in MODULES
    for device in get_backend(name).device_types or ("cpu", "cuda")
    if device == "cpu" or torch.cuda.is_available()
]
"""Every backend on every device that this machine has."""
if interpreted():
    CASES.append(("triton", "cpu"))


def only_on(*names: str, device: str = "") -> pytest.MarkDecorator:
    """Runs a test that takes ``backend`` on these backends and this device alone."""
    cases = [case for case in CASES if case[0] in (names or MODULES) and device in case[1]]
    return pytest.mark.parametrize("backend", cases, indirect=True, ids="@".join)


def make_encoding(backend: str = "auto", num_dims: int = 3, **settings) -> SmoothedHashEncoding:
    """A small encoding with tables in U[0, 1]; resolutions 4, 16, 64, 256, the first dense, the last hashed.

    They are powers of two, so that float32 and float64 find the same cell and the same position in it.
    """
    defaults = dict(num_levels=4, base_resolution=4, max_resolution=256, log2_hashmap_size=10, init_scale=1.0)
    config = HashEncodingConfig(**{**defaults, **settings}, backend=backend)
    return SmoothedHashEncoding(config, num_dims=num_dims)
