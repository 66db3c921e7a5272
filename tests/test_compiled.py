"""Decoder and rendering through torch.compile: the same training, for its shapes alone, or a word and none of it."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_model import make_model, make_rays

from hashpose_ns import compiled
from hashpose_ns.compiled import CompiledForTraining
from hashpose_ns.errors import HashPoseError
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.peers.coordinate_fields import GARFFieldConfig
from nerfstudio.data.scene_box import SceneBox

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What is said on the console."""
    said: list[str] = []
    monkeypatch.setattr(compiled.CONSOLE, "print", lambda line, **_: said.append(line))
    return said


def train_step(model, count: int = 60):
    """Colours, and the gradients of all parameters, with the same samples every time."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    outputs = model(make_rays(count))
    outputs["rgb"].square().sum().backward()
    return outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(one, other) -> None:
    for name in ("rgb", "accumulation"):
        torch.testing.assert_close(one[0][name], other[0][name], rtol=1e-5, atol=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("background", ["white", "last_sample", "random"])
@pytest.mark.parametrize("density", ["softplus", "exp"])
def test_the_function_that_is_compiled_does_what_the_renderers_do(background, density):
    """Not compiled here: the other way through decoder and renderers."""
    plain, other = (make_model(background_color=background, compile=compile) for compile in (False, True))
    for model in (plain, other):
        model.field.density_activation = model.field.density_activation if density == "softplus" else torch.exp
    other.compiled_shading.shapes = ()  # as after a failure
    assert_same_step(train_step(plain), train_step(other))


@needs_compiler
def test_a_compiled_step_is_the_same_and_other_shapes_are_not_compiled(lines, unchecked):
    plain, fast = make_model(background_color="white"), make_model(background_color="white", compile=True)
    assert plain.state_dict().keys() == fast.state_dict().keys()
    assert_same_step(train_step(plain), train_step(fast))
    shading = fast.compiled_shading
    assert len(lines) == 1 and shading.compiled is not None, lines
    calls = []
    function, shading.compiled = shading.compiled, lambda *args, **kwargs: calls.append(1) or function(*args, **kwargs)
    assert_same_step(train_step(plain), train_step(fast))
    assert calls == [1]
    assert_same_step(train_step(plain, 33), train_step(fast, 33))
    torch.testing.assert_close(plain.eval()(make_rays())["rgb"], fast.eval()(make_rays())["rgb"])
    assert calls == [1], "neither another batch nor evaluation is compiled"


def test_what_cannot_be_compiled_is_said_once_and_training_goes_on(lines, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler on this machine\nand many more lines")

    monkeypatch.setattr(torch, "compile", broken)
    plain, slow = make_model(), make_model(compile=True)
    for _ in range(2):
        assert_same_step(train_step(plain), train_step(slow))
    assert len(lines) == 2 and "no compiler on this machine" in lines[1] and "continues without" in lines[1]


def test_a_compiled_function_with_other_results_is_not_used(lines, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: (1.001 * function(x)[0],))
    square = CompiledForTraining(lambda x: (x * x,), lambda: [])
    x = torch.arange(4.0, requires_grad=True)
    assert torch.equal(square(x)[0], x * x) and x.grad is None
    assert square.compiled is None and "the results differ" in lines[-1]


def test_a_field_of_others_is_refused():
    config = HashPoseModelConfig(field=GARFFieldConfig(), curriculum=CurriculumConfig(mode="none"), compile=True)
    with pytest.raises(HashPoseError, match="decoder in torch"):
        config.setup(scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=2, metadata={})


def test_a_replay_that_goes_wrong_is_noticed(lines, monkeypatch):
    """CUDA graphs compute their first call, and only later ones by replaying it; here one that replays old numbers."""

    def compile_wrongly(function, **_):
        kept = []

        def replay(tensor):
            kept.append(function(tensor))
            return kept[min(len(kept) - 1, 1)]

        return replay

    monkeypatch.setattr(torch, "compile", compile_wrongly)
    weight = torch.ones(3, requires_grad=True)
    compiled_function = CompiledForTraining(lambda tensor: (tensor * weight,), lambda: [weight])
    (result,) = compiled_function(torch.arange(3.0, requires_grad=True))
    assert compiled_function.compiled is None and "because" in lines[-1]
    assert torch.equal(result, torch.arange(3.0))
