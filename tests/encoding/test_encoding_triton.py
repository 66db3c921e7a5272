"""The Triton kernels without a GPU: through Triton's interpreter against the oracle, and compiled for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_encoding import make_encoding

from hashpose_ns.encoding.backends import get_backend
from hashpose_ns.encoding.triton import interpreted

triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with torch on Linux)")
HERE = Path(__file__).parent

KERNELS = {
    "encode_kernel": {},
    "table_gradient_kernel": {},
    "x_gradient_kernel": {"READING": 3},
}
TYPES = {"distances_ptr": "*i64", "geometry_ptr": "*i32", "levels_ptr": "*i32", "count": "i32", "smoothing": "fp32"}


@pytest.mark.skipif(interpreted(), reason="this is the run inside of the interpreter")
def test_the_interpreter_passes_the_tests_of_all_backends():
    """Triton decides when it is imported whether it interprets, hence a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            str(HERE / "test_encoding_against_oracle.py"),
        ]
        + ["-k", "triton and cpu and not share_one_rounding and not any_number and not 0.5 and not 4.0"],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed.group(1)) >= 25, done.stdout[-1000:]


@pytest.mark.parametrize("capability", [75, 80, 90, 100, 120])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")
def test_kernels_compile_for_gpus_with_vector_access_and_without_spills(kernel, capability, tmp_path, monkeypatch):
    """At the paper's sizes: 16 levels of 2 features in 3-D."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hashpose_ns.encoding import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    function = getattr(triton_kernels, kernel)
    constants = dict(LEVELS=16, DIMS=3, FEATURES=2, FORWARD_SMOOTHING=False, BLOCK=128, **KERNELS[kernel])
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={name: "constexpr" if name in constants else TYPES.get(name, "*fp32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr")},
    )
    options = dict(num_warps=4, enable_fp_fusion=False)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    if kernel == "table_gradient_kernel":
        reduction = "red.global.gpu.relaxed.add.v2.f32" if capability >= 90 else "red.global.gpu.relaxed.add.f32"
        assert reduction in ptx
    else:  # both features of a corner by one load: eight corners at least
        assert ptx.count("ld.global.v2.b32") >= 8
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([cuobjdump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    registers, stack, local = (
        int(re.search(rf"{word}:(\d+)", usage.stdout).group(1)) for word in ("REG", "STACK", "LOCAL")
    )
    assert registers <= 128 and stack == 0 and local == 0, usage.stdout


def test_it_says_why_it_cannot_be_used():
    grid = make_encoding().grid
    backend = get_backend("triton")
    if not interpreted():
        assert "NVIDIA GPU" in backend.unsupported(torch.device("cpu"), torch.float32, grid)
    assert "float32" in backend.unsupported(torch.device("cuda"), torch.float64, grid)
    assert "3" in backend.unsupported(torch.device("cuda"), torch.float32, make_encoding(features_per_level=3).grid)
