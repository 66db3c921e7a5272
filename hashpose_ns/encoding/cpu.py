"""The C++ kernel for the CPU: built on first use, kept in the user's cache, called through ctypes.

Nothing is built when this module is imported, and without a compiler nothing fails: :meth:`CppBackend.unsupported`
then says why and another backend takes over. Environment variables: ``CXX`` chooses the compiler, ``XDG_CACHE_HOME``
the cache, ``HASHPOSE_NO_CPP=1`` switches the kernel off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from hashpose_ns.encoding.backends import Backend
from hashpose_ns.encoding.grid import READINGS, Grid
from hashpose_ns.host import user_cache

SOURCE = Path(__file__).parent / "csrc" / "hash_encoding.cpp"

# Contraction off: positions must round as in torch. The two -fno-* let loops vectorise and do not change results. Never
# -ffast-math: linked with it, a library switches subnormal numbers off for the whole process.
FLAGS = "-std=c++17 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -shared -fPIC".split()
# Tried in this order. macOS' clang has no OpenMP, some compilers do not know the machine.
VARIANTS: Tuple[Tuple[str, ...], ...] = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())

FEATURES = (1, 2, 4, 8)
"""Features per level that the kernel is compiled for."""


class BuildError(Exception):
    """The kernel could not be built or loaded; the message is a clause that follows "because"."""


def _compiler() -> List[str]:
    """The command that runs the C++ compiler, from ``$CXX`` or the usual names."""
    if os.environ.get("CXX"):
        try:
            return shlex.split(os.environ["CXX"])
        except ValueError as error:
            raise BuildError(f"$CXX is not a command ({error})") from error
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler was found (c++, g++, clang++ or $CXX)")


def _run(command: Sequence[str]) -> str:
    """Output of a compiler's command.

    Raises:
        BuildError: If it cannot be run or fails.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler could not be run ({error})") from error
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit status {result.returncode}"]
        first = next((line for line in lines if "error" in line.lower()), lines[0])
        raise BuildError(f"'{command[0]}' failed ({first.strip()})")
    return result.stdout


def _cpu_name() -> str:
    """What -march=native depends on: a cache may be shared between machines."""
    lines = [platform.machine(), platform.processor()]
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines():
            if line.split("\t")[0].strip() in ("model name", "flags", "Features", "CPU part", "CPU implementer"):
                lines.append(line)
    except OSError:
        pass  # not Linux
    return "\n".join(lines)


def _cache_dir() -> Path:
    """The first directory for built kernels that can be written: the user's cache, else one below the temporary files.

    Raises:
        BuildError: If there is none.
    """
    user = getattr(os, "getuid", lambda: 0)()
    for path in (user_cache(), Path(tempfile.gettempdir()) / f"hashpose-{user}"):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
            # Code is loaded from here: in a world-writable /tmp the directory may be someone else's.
            if not hasattr(os, "getuid") or path.stat().st_uid == user:
                return path
        except OSError:
            continue
    raise BuildError("no directory for the compiled kernel can be written; set XDG_CACHE_HOME to one")


def _build(compiler: Sequence[str], cache: Path, name: str) -> Path:
    """Compiles the kernel into the cache, where it appears complete or not at all.

    Returns:
        The file, called `name`, a hash of its content, and `.so`.

    Raises:
        BuildError: If no variant of the flags compiles.
    """
    with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as folder:
        path = Path(folder) / f"{name}.so"
        for number, variant in enumerate(VARIANTS):
            try:
                _run([*compiler, *FLAGS, *variant, str(SOURCE), "-o", str(path)])
                break
            except BuildError:
                if number == len(VARIANTS) - 1:
                    raise
        built = cache / f"{name}-{_content_hash(path)}.so"
        os.replace(path, built)
    return built


def _content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _cached(cache: Path, name: str) -> Optional[Path]:
    """The kernel of this name in the cache, if its content is what was built; one that is damaged is removed. The
    process would not survive loading it."""
    for path in sorted(cache.glob(f"{name}-*.so")):
        try:
            if path.stem == f"{name}-{_content_hash(path)}":
                return path
            path.unlink()
        except OSError:
            continue
    return None


@functools.lru_cache(maxsize=None)
def _library() -> Tuple[Optional[ctypes.CDLL], Optional[str]]:
    """The loaded kernel and None, or None and the reason why there is none."""
    if os.environ.get("HASHPOSE_NO_CPP", "0") not in ("", "0"):
        return None, "HASHPOSE_NO_CPP is set"
    try:
        compiler = _compiler()
        version = _run([*compiler, "--version"])
        key = hashlib.sha256(
            "\0".join([SOURCE.read_text(), " ".join(FLAGS), repr(VARIANTS), version, _cpu_name()]).encode()
        ).hexdigest()[:16]
        cache, name = _cache_dir(), f"hash_encoding-{key}"
        cached = _cached(cache, name)
        if cached is not None:
            try:
                return _load(cached), None
            except (OSError, AttributeError):
                pass  # not for this system: build it again
        return _load(_build(compiler, cache, name)), None
    except BuildError as error:
        return None, str(error)
    except (OSError, AttributeError) as error:
        return None, f"the compiled kernel cannot be loaded ({error})"


def _kernel() -> ctypes.CDLL:
    """The loaded kernel.

    Raises:
        BuildError: If there is none, which `CppBackend.unsupported` says beforehand.
    """
    library, reason = _library()
    if library is None:
        raise BuildError(reason)
    return library


def _load(path: Path) -> ctypes.CDLL:
    """Loads a built kernel and declares its functions."""
    library = ctypes.CDLL(str(path))
    pointer, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    common: List[type] = [ctypes.c_int64, number, number, number, pointer, pointer, pointer, pointer, number]
    library.hashpose_forward.argtypes = [*common, pointer]
    library.hashpose_backward.argtypes = [*common, pointer, number, real, pointer, pointer, pointer]
    library.hashpose_forward.restype = library.hashpose_backward.restype = number
    return library


def _pointers(tensors: Sequence[Optional[Tensor]]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*[None if tensor is None else tensor.data_ptr() for tensor in tensors])


class CppBackend(Backend):
    """C++ and OpenMP on the CPU in float32, on as many threads as torch uses; the same bits for any number of them."""

    name = "cpp"
    device_types = ("cpu",)

    def unsupported(self, device: torch.device, dtype: torch.dtype, grid: Grid) -> Optional[str]:
        if device.type != "cpu":
            return f"it computes on the CPU and the points are on {device.type}"
        if dtype != torch.float32:
            return f"it computes in float32 and the tables are {dtype}"
        if grid.features_per_level not in FEATURES:
            return f"it knows {', '.join(map(str, FEATURES))} features per level, not {grid.features_per_level}"
        if grid.forward_smoothing:
            return "it does not smooth the forward pass"
        return _library()[1]

    def forward(self, x: Tensor, tables: Sequence[Tensor], grid: Grid) -> Tensor:
        out = x.new_empty(x.shape[0], grid.num_levels * grid.features_per_level)
        tables = [table.contiguous() for table in tables]
        status = _kernel().hashpose_forward(*_common(x, tables, grid), out.data_ptr())
        assert status == 0
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
        tables = [table.contiguous() for table in tables]
        x_grad = torch.empty_like(x) if x_needs_grad else None
        # The kernel clears them: each by the thread that fills it.
        table_grads = [torch.empty_like(table) if need else None for table, need in zip(tables, table_needs_grad)]
        status = _kernel().hashpose_backward(
            *_common(x, tables, grid),
            grad_output.data_ptr(),
            READINGS.index(grid.gradient),
            grid.smoothing,
            (ctypes.c_int64 * len(tables))(*[table.shape[0] for table in tables]),
            None if x_grad is None else x_grad.data_ptr(),
            _pointers(table_grads),
        )
        assert status == 0
        return x_grad, table_grads


def _common(x: Tensor, tables: Sequence[Tensor], grid: Grid) -> Tuple:
    """The arguments that both functions of the kernel begin with."""
    levels = grid.num_levels
    numbers = ctypes.c_uint32 * levels
    return (
        x.shape[0],
        grid.num_dims,
        grid.features_per_level,
        levels,
        x.data_ptr(),
        _pointers(tables),
        numbers(*grid.resolutions),
        numbers(*[grid.hash_mask(level) for level in range(levels)]),
        torch.get_num_threads(),
    )


BACKEND = CppBackend()
