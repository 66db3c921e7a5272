"""Settings, the choice of a backend, and what is logged about it."""

import pytest
import torch
import tyro
from small_encoding import make_encoding

from hashpose_ns.encoding import HashEncodingConfig, SmoothedHashEncoding, backends
from hashpose_ns.encoding.grid import level_resolutions


def test_level_resolutions():
    paper = level_resolutions(16, 16, 2048)
    assert paper[0] == 16 and paper[-1] == 2048 and len(paper) == 16
    assert all(1.2 < fine / coarse < 1.5 for coarse, fine in zip(paper, paper[1:]))
    assert level_resolutions(8, 16, 2048) == [16, 32, 64, 128, 256, 512, 1024, 2048]
    assert level_resolutions(7, 10, 10_000_000) == [10**k for k in range(1, 8)]
    assert level_resolutions(3, 7, 7) == [7, 7, 7]
    assert level_resolutions(1, 16, 2048) == [16]


def test_tables():
    encoding = HashEncodingConfig().setup(num_dims=3)
    assert isinstance(encoding, SmoothedHashEncoding)
    assert encoding.out_dim == encoding.get_out_dim() == 32
    expected = [min((n + 1) ** 3, 2**19) for n in encoding.resolutions]
    assert [tuple(table.shape) for table in encoding.tables] == [(entries, 2) for entries in expected]
    assert sum(table.numel() for table in encoding.tables) == pytest.approx(12.2e6, rel=0.01)
    for table in encoding.tables:
        assert 0 <= table.min() and 0.9e-4 < table.max() <= 1e-4
    plane = HashEncodingConfig(num_levels=1).setup(num_dims=2)
    assert plane.tables[0].shape == (17**2, 2)


@pytest.mark.parametrize(
    "settings, word",
    [
        (dict(num_dims=4), "dimensions"),
        (dict(num_levels=0), "num_levels"),
        (dict(features_per_level=0), "features_per_level"),
        (dict(base_resolution=32, max_resolution=16), "resolution"),
        (dict(base_resolution=0), "resolution"),
        (dict(log2_hashmap_size=31), "log2_hashmap_size"),
        (dict(gradient="cubic"), "gradient"),
        (dict(smoothing=-1.0), "smoothing"),
        (dict(smoothing=float("nan")), "smoothing"),
    ],
)
def test_settings_out_of_range(settings, word, unchecked):
    with pytest.raises(ValueError, match=word):
        make_encoding(**settings)


def test_wrong_arguments():
    encoding = make_encoding("reference")
    with pytest.raises(ValueError, match="3 dimensions"):
        encoding(torch.rand(5, 2))
    with pytest.raises(ValueError, match="4 levels"):
        encoding(torch.rand(5, 3), train_levels=[True] * 3)
    with pytest.raises(ValueError, match="points are on meta and the hash tables on cpu"):
        encoding(torch.rand(5, 3, device="meta"))


def test_every_setting_has_help(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(HashEncodingConfig, args=["--help"])
    text = capsys.readouterr().out
    for flag in ("num-levels", "gradient", "smoothing", "forward-smoothing", "init-scale", "backend"):
        assert f"--{flag}" in text
    assert "axis: the weight along each axis is smoothed" in " ".join(text.replace("│", " ").split())
    config = tyro.cli(HashEncodingConfig, args=["--gradient", "product_norm", "--smoothing", "0.5"])
    assert (config.gradient, config.smoothing) == ("product_norm", 0.5)


def test_the_choice_is_named_once(log):
    for _ in range(2):
        make_encoding("eager")(torch.rand(3, 3))
    assert log == ["Hash encoding backend: eager on cpu."]


@pytest.mark.parametrize(
    "settings, reason",
    [
        (dict(backend="warp"), "'warp' is not part of this installation"),
        (dict(backend="cpp", forward_smoothing=True), "does not smooth the forward pass"),
        (dict(backend="cpp", features_per_level=3), "1, 2, 4, 8 features per level, not 3"),
    ],
)
def test_a_forced_backend_that_cannot(settings, reason, unchecked):
    with pytest.raises(ValueError, match=reason) as error:
        make_encoding(**settings)(torch.rand(3, 3))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_auto_falls_back_by_capability(log):
    assert make_encoding("auto", forward_smoothing=True)(torch.rand(3, 3)).shape == (3, 8)
    assert log == ["Hash encoding backend: eager on cpu (not cpp, because it does not smooth the forward pass)."]
    double = make_encoding("auto").double()
    assert double(torch.rand(3, 3, dtype=torch.float64)).dtype == torch.float64
    assert "float32" in log[1]


def test_the_choice_follows_the_settings():
    """The ablation may be switched on after the first call has chosen a kernel that does not know it."""
    encoding = make_encoding("auto")
    x = torch.rand(100, 3)
    plain = encoding(x)
    encoding.config.forward_smoothing = True
    smooth = encoding(x)
    encoding.config.backend = "reference"
    torch.testing.assert_close(smooth, encoding(x), rtol=0, atol=2e-6)
    assert (smooth - plain).abs().max() > 0.05


def test_every_backend_says_who_it_is():
    for name in backends.MODULES:
        assert backends.get_backend(name).name == name
    assert "eager" in backends.AUTO_ORDER  # the one that supports everything
