"""The encoding in Triton, for NVIDIA GPUs. It comes with torch on Linux and compiles kernels on first use; it wants a C
compiler for its launcher, but no CUDA toolkit.

Three kernels, one launch each for all levels: features; the scatter into the tables' gradients (weights alone, no table
is read); the gradient of the points (levels summed in registers, in order, so that it has the same bits every time).
Nothing is stored between forward and backward. The scatter adds by atomics, in any order; where
``torch.use_deterministic_algorithms(True)`` was called, eager torch does it instead.

Triton is imported when a CUDA device first asks, never before. ``TRITON_INTERPRET=1``, set before that, runs the
kernels on the CPU, very slowly, for tests.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from typing import Callable, ContextManager, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from hashpose_ns.encoding.backends import Backend
from hashpose_ns.encoding.eager import BACKEND as EAGER
from hashpose_ns.encoding.grid import READINGS, Grid
from hashpose_ns.errors import one_line

FEATURES = (1, 2, 4, 8)
"""Features per level that can be computed: a row must be a power of two for vector loads."""
BLOCK = 128
"""Points per program."""


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.lru_cache(maxsize=None)
def import_failure() -> Optional[str]:
    """Why Triton cannot be imported, None where it can."""
    try:
        from hashpose_ns.encoding import triton_kernels  # noqa: F401
    except Exception as error:  # an ImportError, or whatever a broken installation raises
        return f"Triton cannot be imported ({error})"
    return None


class TritonBackend(Backend):
    """See the module's docstring."""

    name = "triton"
    device_types = ("cuda",)

    def unsupported(self, device: torch.device, dtype: torch.dtype, grid: Grid) -> Optional[str]:
        if device.type != "cuda" and not (interpreted() and device.type == "cpu"):
            return f"it runs on an NVIDIA GPU and not on a {device.type} device"
        if dtype != torch.float32:
            return f"it computes in float32 and not in {dtype}"
        if grid.features_per_level not in FEATURES:
            return f"it takes 1, 2, 4 or 8 features per level and not {grid.features_per_level}"
        if grid.features_per_level << grid.log2_hashmap_size >= 2**31:
            return "it addresses tables of up to 2^31 features"
        failure = import_failure()
        if failure is not None or device.type == "cpu":
            return failure
        if torch.version.hip or torch.cuda.get_device_capability(device) < (7, 5):
            return "it needs an NVIDIA GPU of compute capability 7.5 or newer"
        return disagreement(self, device)

    def forward(self, x: Tensor, tables: Sequence[Tensor], grid: Grid) -> Tensor:
        from hashpose_ns.encoding.triton_kernels import encode_kernel

        out = x.new_empty(x.shape[0], grid.num_levels * grid.features_per_level)
        tables = _addressable(tables)
        block, blocks = _blocks(x)
        if blocks:
            with _current(x.device):
                encode_kernel[(blocks, grid.num_levels)](
                    x,
                    out,
                    tables[0],
                    _distances(tables),
                    _geometry(grid, x.device),
                    x.shape[0],
                    **_constants(grid, block),
                )
        return out

    def backward(
        self,
        grad_output: Tensor,
        x: Tensor,
        tables: Sequence[Tensor],
        grid: Grid,
        x_needs_grad: bool,
        table_needs_grad: Sequence[bool],
    ) -> Tuple[Optional[Tensor], List[Optional[Tensor]]]:
        table_grads: List[Optional[Tensor]] = [None] * grid.num_levels
        if any(table_needs_grad):
            if torch.are_deterministic_algorithms_enabled():
                _, table_grads = EAGER.backward(grad_output, x, tables, grid, False, table_needs_grad)
            else:
                table_grads = _table_gradients(grad_output, x, tables, grid, table_needs_grad)
        return _x_gradient(grad_output, x, tables, grid) if x_needs_grad else None, table_grads


def _table_gradients(
    grad_output: Tensor, x: Tensor, tables: Sequence[Tensor], grid: Grid, needed: Sequence[bool]
) -> List[Optional[Tensor]]:
    """Gradients of the tables that need one. The others cost nothing."""
    from hashpose_ns.encoding.triton_kernels import table_gradient_kernel

    trained = [level for level, need in enumerate(needed) if need]
    # One buffer, cleared at once; every level's part starts at a multiple of 16 bytes.
    sizes = [-(-tables[level].numel() // 4) * 4 for level in trained]
    flat = x.new_zeros(sum(sizes))
    parts = [part[: tables[level].numel()].view(tables[level].shape) for level, part in zip(trained, flat.split(sizes))]
    block, blocks = _blocks(x)
    if blocks:
        with _current(x.device):
            table_gradient_kernel[(blocks, len(trained))](
                x,
                grad_output,
                flat,
                _distances(parts),
                _device_integers(tuple(trained), torch.int32, x.device),
                _geometry(grid, x.device),
                x.shape[0],
                **_constants(grid, block),
            )
    grads = dict(zip(trained, parts))
    return [grads.get(level) for level in range(grid.num_levels)]


def _x_gradient(grad_output: Tensor, x: Tensor, tables: Sequence[Tensor], grid: Grid) -> Tensor:
    from hashpose_ns.encoding.triton_kernels import x_gradient_kernel

    x_grad = torch.empty_like(x)
    tables = _addressable(tables)
    block, blocks = _blocks(x)
    if blocks:
        with _current(x.device):
            x_gradient_kernel[(blocks,)](
                x,
                grad_output,
                x_grad,
                tables[0],
                _distances(tables),
                _geometry(grid, x.device),
                x.shape[0],
                grid.smoothing,
                READING=READINGS.index(grid.gradient),
                **_constants(grid, block),
            )
    return x_grad


@functools.lru_cache(maxsize=None)
def disagreement(backend: Backend, device: torch.device) -> Optional[str]:
    """Why a device is not to be trusted with the kernels: they don't compile for it, or compute something else there
    than plain torch does. None where they agree; takes a second or two, once per process."""
    generator = torch.Generator("cpu").manual_seed(0)

    def sample(of: Callable[..., Tensor], *shape: int) -> Tensor:  # whatever torch's defaults are set to
        return of(*shape, generator=generator, dtype=torch.float32, device="cpu").to(device)

    try:
        for reading in READINGS:
            grid = Grid(3, 2, (4, 64), 10, reading, smoothing=1.0, forward_smoothing=False)
            x, grad = sample(torch.rand, 300, 3), sample(torch.randn, 300, 4)
            tables = [sample(torch.rand, grid.num_entries(level), 2) for level in range(2)]
            results = []
            for one in (backend, EAGER):
                x_grad, table_grads = one.backward(grad, x, tables, grid, True, (True, True))
                results.append((one.forward(x, tables, grid), x_grad, *table_grads))
            for ours, theirs in zip(*results):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2 if ours is results[0][1] else 1e-4)
    except AssertionError:
        return f"its kernels and plain torch do not agree on {device}; please report this"
    except Exception as error:  # of Triton's compiler, of the driver
        return f"its kernels cannot run on {device} ({one_line(error)})"
    return None


def _blocks(x: Tensor) -> Tuple[int, int]:
    """Points per program, and how many programs that takes."""
    count = x.shape[0]
    # The interpreter takes its time per program, not per point.
    block = 1 << max(math.ceil(math.log2(max(count, 1))), 4) if x.device.type == "cpu" else BLOCK
    return block, -(-count // block)


def _constants(grid: Grid, block: int) -> dict:
    return dict(
        LEVELS=grid.num_levels,
        DIMS=grid.num_dims,
        FEATURES=grid.features_per_level,
        FORWARD_SMOOTHING=grid.forward_smoothing,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,  # positions must round as in torch, or points land in other cells
    )


def _addressable(tables: Sequence[Tensor]) -> Sequence[Tensor]:
    """Tables as the kernels read them. Parameters are: only views of something else may have to be copied."""
    if all(table.is_contiguous() and table.data_ptr() % 16 == 0 for table in tables):
        return tables
    return [table.clone(memory_format=torch.contiguous_format) for table in tables]


def _current(device: torch.device) -> ContextManager:
    """Triton launches on the current device, whichever one its arguments are on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _distances(tables: Sequence[Tensor]) -> Tensor:
    """Floats from the first table to each, int64 on their device; copied there anew only when tables have moved, which
    they don't in training."""
    first = tables[0].data_ptr()
    numbers = tuple((table.data_ptr() - first) // 4 for table in tables)
    return _device_integers(numbers, torch.int64, tables[0].device)


def _geometry(grid: Grid, device: torch.device) -> Tensor:
    """[L, 2] int32: cells per axis, and the mask of the hash (0 for a dense level)."""
    pairs = [(resolution, grid.hash_mask(level)) for level, resolution in enumerate(grid.resolutions)]
    return _device_integers(tuple(number for pair in pairs for number in pair), torch.int32, device)


@functools.lru_cache(maxsize=256)
def _device_integers(numbers: Tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Integers on a device. The copy comes from pinned memory and does not wait for the device."""
    host = torch.tensor(numbers, dtype=dtype, device="cpu")
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


BACKEND = TritonBackend()
