"""The compiled kernel: the same bits on any number of threads, built safely, not in the way where it cannot be."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_encoding import make_encoding

from hashpose_ns.encoding import cpu

REASON = cpu._library()[1]
needs_kernel = pytest.mark.skipif(REASON is not None, reason=f"cpp: {REASON}")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and a kernel that has not been looked for yet. Returns the cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HASHPOSE_NO_CPP", raising=False)
    cpu._library.cache_clear()
    yield tmp_path / "cache" / "hashpose"
    cpu._library.cache_clear()


@pytest.fixture(scope="session")
def built_kernel(tmp_path_factory) -> Path:
    """A kernel compiled once for the tests that are not about compiling."""
    if REASON is not None:
        pytest.skip(f"cpp: {REASON}")
    return cpu._build(cpu._compiler(), tmp_path_factory.mktemp("kernel"), "kernel")


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def copier(path: Path, kernel: Path, together: int = 1) -> str:
    """A compiler that writes a finished kernel in two halves, and in between waits until so many of it have come that
    far (for a minute at most)."""
    size = kernel.stat().st_size
    return script(
        path,
        f"""[ "$1" = --version ] && echo copier && exit
for argument; do [ "$last" = -o ] && target="$argument"; last="$argument"; done
head -c {size // 2} {kernel} > "$target"; echo built >> {path}.log
for _ in $(seq 600); do [ "$(wc -l < {path}.log)" -ge {together} ] && break; sleep 0.1; done
tail -c +{size // 2 + 1} {kernel} >> "$target"
""",
    )


@needs_kernel
@pytest.mark.parametrize("gradient", ["linear", "product", "product_norm", "axis"])
def test_same_bits_on_any_number_of_threads(gradient):
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            encoding = make_encoding("cpp", gradient=gradient)
            x = torch.rand(20000, 3, requires_grad=True)
            output = encoding(x)
            output.backward(torch.randn(output.shape))
            results.append([output.detach(), x.grad, *[table.grad for table in encoding.tables]])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, two in zip(results[0], other):
            assert torch.equal(one, two)


@needs_kernel
def test_smoothing_polynomial():
    """delta'(w) is a polynomial in the kernel: against the sine, seen through a table of slope 1."""
    encoding = make_encoding("cpp", num_dims=2, num_levels=1, features_per_level=1, base_resolution=1, gradient="axis")
    with torch.no_grad():
        encoding.tables[0].copy_(torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    x = torch.stack([torch.linspace(0, 1, 4001), torch.full((4001,), 0.5)], dim=1).requires_grad_()
    encoding(x).sum().backward()
    expected = 1 + torch.pi / 2 * torch.sin(torch.pi * x[:, 0].detach().double())
    assert (x.grad[:, 0] - expected).abs().max() < 5e-7


@needs_kernel
def test_subnormal_numbers_survive(built_kernel):
    cpu._load(built_kernel)
    tiny = torch.tensor([2.0**-130])
    assert (tiny * 1.0).item() == 2.0**-130
    assert float(2.0**-1050) * 0.5 == 2.0**-1051


@needs_kernel
def test_without_openmp_and_native_instructions(fresh, tmp_path, monkeypatch):
    """A compiler that knows neither still makes a kernel, with the same results up to rounding."""
    x = torch.rand(3000, 3, requires_grad=True)
    encoding = make_encoding("cpp", gradient="product")
    output = encoding(x)
    output.sum().backward()
    expected = [output.detach(), x.grad, encoding.tables[3].grad]

    compiler = shutil.which(cpu._compiler()[0])
    plain = script(
        tmp_path / "plain",
        'for a; do case "$a" in -fopenmp|-march=native) echo "error: no $a" >&2; exit 1;; esac; done\n'
        f'exec {compiler} "$@"\n',
    )
    monkeypatch.setenv("CXX", plain)
    cpu._library.cache_clear()
    assert cpu._library()[1] is None
    encoding.zero_grad()
    x.grad = None
    output = encoding(x)
    output.sum().backward()
    for one, two in zip([output.detach(), x.grad, encoding.tables[3].grad], expected):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * two.abs().max().item())


def test_concurrent_first_uses(built_kernel, fresh, tmp_path):
    """Several processes that build into one empty cache at once all get a working kernel, and leave one file."""
    compiler = copier(tmp_path / "copier", built_kernel, together=3)
    code = (
        "import torch\n"
        "from hashpose_ns.encoding import HashEncodingConfig\n"
        "config = HashEncodingConfig(num_levels=2, max_resolution=32, backend='cpp')\n"
        "print('shape', *config.setup()(torch.rand(7, 3)).shape)\n"
    )
    root = Path(cpu.__file__).parents[2]
    environment = {**os.environ, "CXX": compiler, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert "shape 7 4" in process.communicate(timeout=120)[0]
    assert len(Path(f"{compiler}.log").read_text().splitlines()) == 3, "each was to build, all at once"
    assert [path.suffix for path in fresh.iterdir()] == [".so"], "one file, of one content"


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "folder"])
def test_a_damaged_kernel_is_built_again_and_never_loaded(
    damage, built_kernel, fresh, tmp_path, monkeypatch, unchecked
):
    whole = built_kernel.read_bytes()
    loaded = []
    monkeypatch.setenv("CXX", copier(tmp_path / "copier", built_kernel))
    monkeypatch.setattr(cpu, "_load", lambda path: loaded.append(path.read_bytes()) or path)
    path, _ = cpu._library()
    if damage == "folder":
        path.unlink()
        (fresh / path.name.replace("-", "-0", 2)).mkdir()
    else:
        flipped = whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:]
        path.write_bytes({"cut": whole[:5000], "empty": b"", "bit": flipped}[damage])
    cpu._library.cache_clear()
    assert cpu._library() == (path, None)
    assert loaded == [whole, whole]


def test_cache_is_used_and_keyed(built_kernel, fresh, tmp_path, monkeypatch):
    compiler = copier(tmp_path / "copier", built_kernel)
    monkeypatch.setenv("CXX", compiler)
    for _ in range(2):
        cpu._library.cache_clear()
        assert cpu._library()[1] is None
    assert len(Path(f"{compiler}.log").read_text().splitlines()) == 1
    monkeypatch.setattr(cpu, "_cpu_name", lambda: "another machine that shares the home directory")
    cpu._library.cache_clear()
    assert cpu._library()[1] is None
    assert len(Path(f"{compiler}.log").read_text().splitlines()) == 2
    assert len(list(fresh.iterdir())) == 2


def test_unwritable_cache(fresh, tmp_path, monkeypatch):
    """If the home cannot be written (here a file is in its place, which stops root too), a temporary one is used."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cpu.tempfile, "gettempdir", lambda: str(tmp_path))
    assert cpu._cache_dir() == tmp_path / f"hashpose-{os.getuid()}"
    assert stat.S_IMODE(cpu._cache_dir().stat().st_mode) == 0o700
    monkeypatch.setattr(cpu.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(cpu.BuildError, match="XDG_CACHE_HOME"):
        cpu._cache_dir()


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"CXX": "/bin/false"}, "'/bin/false' failed"),
        ({"CXX": "/nowhere/c++"}, "could not be run"),
        ({"CXX": 'g++ "'}, "is not a command"),
        ({"CXX": "", "PATH": ""}, "no C++ compiler was found"),
        ({"HASHPOSE_NO_CPP": "1"}, "HASHPOSE_NO_CPP is set"),
    ],
)
def test_without_a_kernel(environment, reason, fresh, log, monkeypatch):
    """Eager takes over and one line says why; forcing cpp says the same as an error."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    x = torch.rand(50, 3)
    encoding = make_encoding("auto")
    output = encoding(x)
    encoding(x)
    assert len(log) == 1 and "eager" in log[0] and reason in log[0]
    with pytest.raises(ValueError, match="cpp"):
        make_encoding("cpp")(x)
    encoding.config.backend = "reference"
    torch.testing.assert_close(encoding(x), output)


def test_source_that_does_not_compile(fresh, log, tmp_path, monkeypatch):
    if REASON is not None:
        pytest.skip(f"cpp: {REASON}")
    (tmp_path / "broken.cpp").write_text("int main( {")
    monkeypatch.setattr(cpu, "SOURCE", tmp_path / "broken.cpp")
    make_encoding("auto")(torch.rand(5, 3))
    assert len(log) == 1 and "eager" in log[0] and "error" in log[0]
    assert list(fresh.iterdir()) == []
