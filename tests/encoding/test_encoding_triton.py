"""Triton without a GPU: kernels in its interpreter, kernels compiled for GPUs, and who imports it when."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List

import pytest
import torch
from small_encoding import make_encoding

from hashpose_ns.encoding.backends import get_backend
from hashpose_ns.encoding.triton import interpreted

VARIANTS = {
    "features": ("encode_kernel", {}),
    "table gradient": ("table_gradient_kernel", {}),
    "x gradient": ("x_gradient_kernel", {"READING": 3}),
}
TARGETS = [(name, capability) for name in VARIANTS for capability in (75, 90, 120)]
TARGETS += [("table gradient", capability) for capability in (80, 86, 89, 100)]  # atomics differ most from chip to chip
OTHERS = [
    ("encode_kernel", {"FEATURES": 8}),
    ("encode_kernel", {"FEATURES": 1, "DIMS": 2}),
    ("encode_kernel", {"FORWARD_SMOOTHING": True}),
    ("table_gradient_kernel", {"FEATURES": 4, "DIMS": 2}),
    ("table_gradient_kernel", {"FORWARD_SMOOTHING": True}),
    ("x_gradient_kernel", {"READING": 0, "DIMS": 2}),
    ("x_gradient_kernel", {"READING": 1, "FEATURES": 8}),
    ("x_gradient_kernel", {"READING": 2}),
    ("x_gradient_kernel", {"READING": 3, "FORWARD_SMOOTHING": True}),
]
TYPES = {"distances_ptr": "*i64", "geometry_ptr": "*i32", "levels_ptr": "*i32", "count": "i32", "smoothing": "fp32"}
PER_POINT = ("x_ptr", "out_ptr", "grad_output_ptr", "x_grad_ptr")
"""Arrays that grow with the number of points."""

compiles = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")


@dataclass
class Compiled:
    """A kernel for one kind of GPU."""

    ttir: str
    """Triton's own representation, before any GPU."""
    arguments: Dict[str, str]
    """Names in it -> those in the kernel."""
    instructions: List[str]
    """Names of the machine's instructions (SASS), without predicates and operands."""
    registers: int

    def named(self, pattern: str) -> List[str]:
        return [name for name in self.instructions if re.match(pattern, name)]


def compiled_for(kernel: str, capability: int, folder: Path, **constants) -> Compiled:
    """The kernel at the paper's sizes (16 levels of 2 features in 3-D), compiled."""
    triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with torch on Linux)")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hashpose_ns.encoding import triton_kernels

    function = getattr(triton_kernels, kernel)
    constants = {**dict(LEVELS=16, DIMS=3, FEATURES=2, FORWARD_SMOOTHING=False, BLOCK=128), **constants}
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={name: "constexpr" if name in constants else TYPES.get(name, "*fp32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr")},
    )
    options = dict(num_warps=4, enable_fp_fusion=False)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:
        if "is not defined for option 'gpu-name'" in str(error):
            pytest.skip(f"this Triton's ptxas does not know sm_{capability}")
        raise
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

    def dump(what: str) -> str:
        return subprocess.run([cuobjdump, what, cubin], capture_output=True, text=True, check=True).stdout

    instructions = re.findall(
        r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", dump("--dump-sass"), re.MULTILINE
    )
    assert "EXIT" in instructions
    registers = int(re.search(r"REG:(\d+)", dump("--dump-resource-usage")).group(1))
    ttir = compiled.asm["ttir"]
    inside = re.findall(r"(%\w+): ", re.search(r"tt\.func public @\w+\((.*?)\) attributes", ttir, re.DOTALL).group(1))
    arguments = dict(zip(inside, (name for name in names if name not in constants)))
    return Compiled(ttir, arguments, instructions, registers)


def assert_nothing_spilled(code: Compiled) -> None:
    """No load from and no store to local memory. A stack frame that is reserved and never used costs nothing."""
    assert code.named(r"LDL|STL") == []


@compiles
@pytest.mark.parametrize("variant, capability", TARGETS)
def test_kernels_compile_for_gpus(variant, capability, tmp_path, monkeypatch):
    """With vector access, without spills, and with 64 bits where an offset grows with the number of points."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel, constants = VARIANTS[variant]
    code = compiled_for(kernel, capability, tmp_path, **constants)
    assert_nothing_spilled(code)
    assert code.registers <= 128
    if (
        kernel == "table_gradient_kernel"
    ):  # eight corners: both features by one atomic, from sm_90 on, that returns nothing
        atomics = code.named(r"RED|ATOM")
        assert len(atomics) == (8 if capability >= 90 else 16)
        assert all(name.startswith("RED") and ".ADD" in name for name in atomics)
    else:  # both features of a corner by one load
        assert len(code.named(r"LDG\b.*\.64\b")) >= 8
    splats = re.findall(r"(%\w+) = tt\.splat (%\w+) ", code.ttir)
    per_point = [(value, code.arguments[of]) for value, of in splats if code.arguments.get(of) in PER_POINT]
    names = {name for _, name in per_point}
    assert "x_ptr" in names and len(names) >= 2
    for value, name in per_point:
        offsets = re.findall(rf"tt\.addptr {re.escape(value)}, .*, tensor<[\dx]*x(i\d+)>", code.ttir)
        assert offsets and set(offsets) == {"i64"}, name


@compiles
@pytest.mark.parametrize("kernel, constants", OTHERS)
def test_every_setting_compiles_without_spills(kernel, constants, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    code = compiled_for(kernel, 90, tmp_path, **constants)
    assert_nothing_spilled(code)
    assert code.registers <= 255
    if kernel == "table_gradient_kernel":  # as above: one a corner
        assert len(code.named(r"RED|ATOM")) == len(code.named(r"RED\w*\..*ADD")) == 2 ** constants.get("DIMS", 3)


def test_it_says_why_it_cannot_be_used():
    grid = make_encoding().grid
    backend = get_backend("triton")
    if not interpreted():
        assert "NVIDIA GPU" in backend.unsupported(torch.device("cpu"), torch.float32, grid)
    assert "float32" in backend.unsupported(torch.device("cuda"), torch.float64, grid)
    assert "3" in backend.unsupported(torch.device("cuda"), torch.float32, make_encoding(features_per_level=3).grid)


WITHOUT_TRITON = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            asked.append(name)
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
asked = []
sys.meta_path.insert(0, Absent())
from hashpose_ns.encoding import HashEncodingConfig, backends
from hashpose_ns.errors import HashPoseError
asked.clear()  # torch and nerfstudio may look for it
encoding = HashEncodingConfig(num_levels=2, log2_hashmap_size=10).setup(num_dims=3)
encoding(torch.rand(9, 3, requires_grad=True)).sum().backward()
assert not asked and "hashpose_ns.encoding.triton_kernels" not in sys.modules, asked
print(backends.choose_backend("auto", torch.device("cuda"), torch.float32, encoding.grid).name)
try:
    backends.choose_backend("triton", torch.device("cuda"), torch.float32, encoding.grid)
except HashPoseError as error:
    print(error)
"""


def test_without_triton():
    """The CPU never asks for it; a GPU gets eager torch with a sentence, or an error where Triton was asked for."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_TRITON]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    reason = "because Triton cannot be imported (No module named 'triton')"
    assert done.stdout.splitlines()[1:] == [
        f"Hash encoding backend: eager on cuda (not triton, {reason}).",
        "eager",
        f"The encoding backend 'triton' cannot be used {reason}.",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_more_features_than_32_bits_count():
    """2^26 points of 32 features are 2^31 numbers: the last points must come out as they do alone."""
    encoding = make_encoding("triton", features_per_level=8).cuda()
    count = 2**26 + 1000
    if torch.cuda.mem_get_info()[0] < 3 * 4 * 32 * count:
        pytest.skip("not enough GPU memory")
    x = torch.rand(count, 3, device="cuda", requires_grad=True)
    tail = x.detach()[-3000:].clone().requires_grad_()
    output, alone = encoding(x), encoding(tail)
    assert torch.equal(output[-3000:], alone)
    encoding.requires_grad_(False)
    for points in (x, tail):
        encoding(points).backward(torch.ones((), device="cuda").expand(len(points), 32))
    assert torch.equal(x.grad[-3000:], tail.grad)


@pytest.mark.skipif(interpreted(), reason="this is the run inside of the interpreter")
def test_the_interpreter_passes_tests_against_the_oracle(in_interpreter):  # last: it waits for a process beside
    pytest.importorskip("triton", reason="Triton is not installed (it comes with torch on Linux)")
    code, output = in_interpreter()
    assert code == 0, output[-4000:]
    summary = output.strip().splitlines()[-1]
    assert int(re.search(r"(\d+) passed", summary).group(1)) >= 30 and "skipped" not in summary, summary
