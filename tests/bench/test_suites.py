"""The package's suites apply cleanly, settings win in the order they should, and wrong files say what is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import List, Literal, Optional, Tuple, Union

import pytest
import torch
import yaml
from scenes import CHAIR
from tiny_suites import suite_content

from hashpose_ns.bench import suites
from hashpose_ns.bench.configs import apply, base_config, configured, resolution_factor, trainer_config
from hashpose_ns.bench.entries import Preset, parse_yaml
from hashpose_ns.bench.settings import coerce, plain, setting_paths
from hashpose_ns.errors import HashPoseError
from hashpose_ns.peers.methods import PEERS


def value(config, path: str):
    """A config's setting."""
    for name in path.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def load(folder: Path, name: str = "mine", **changes) -> suites.Suite:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(suite_content(folder, **changes)))
    return suites.load_suite(str(path))


def expanded(folder: Path, **arguments) -> List[suites.Run]:
    changes = arguments.pop("changes", {})
    return suites.expand(load(folder, **changes), data=folder / "scenes", **arguments)


# -- what comes with the package ---------------------------------------------------------------------------------------


def run_of(preset: Preset, scenario: suites.Scenario, scale: suites.Scale) -> suites.Run:
    suite = suites.Suite(
        name="all", scenario=scenario.name, scale=scale.name, scenes={"demo": "demo"}, presets=[preset.name]
    )
    (run,) = suites.expand(suite)
    return run


@pytest.mark.parametrize("scale", ["smoke", "small", "medium", "paper"])
def test_every_preset_applies_in_every_scenario(scale: str):
    scales, scenarios, presets = suites.scales(), suites.scenarios(), suites.presets()
    assert set(scales) == {"smoke", "small", "medium", "paper"}
    for scenario, preset in itertools.product(scenarios.values(), presets.values()):
        config, settings = configured(run_of(preset, scenario, scales[scale]))
        for key in set(settings) - {"pipeline.datamanager.dataparser"}:
            assert plain(value(config, key)) == settings[key], key
        for key in preset.settings:
            assert settings[key] == preset.settings[key], f"{preset.name}: {key} was overridden"


@pytest.mark.parametrize("preset", sorted(suites.presets()))
def test_every_preset_makes_a_model(preset: str):
    from nerfstudio.data.scene_box import SceneBox

    run = run_of(suites.presets()[preset], suites.scenarios()["blender-barf-0.15"], suites.scales()["small"])
    config, _ = configured(run)
    model = config.pipeline.model.setup(
        scene_box=SceneBox(torch.tensor([[-1.5] * 3, [1.5] * 3])), num_train_data=3, metadata={}
    )
    groups = set(model.get_param_groups())
    poses = {"camera_opt"} if preset not in ("true-poses", "colmap-fixed") else set()
    assert groups - {"camera_opt"} == set(config.optimizers) - {"camera_opt"}
    assert groups >= poses


@pytest.mark.parametrize("name", suites.suite_names())
def test_every_suite_expands(name: str, tmp_path: Path):
    for scene in ("chair", "fern_480", "fox"):
        (tmp_path / scene).mkdir()
    suite = suites.load_suite(name)
    runs = suites.expand(suite, data=tmp_path)
    seeds = suite.seeds if isinstance(suite.seeds, int) else len(suite.seeds)
    assert len(runs) == len(suite.scenes) * len(suite.presets) * seeds
    assert len({run.folder(tmp_path) for run in runs}) == len(runs)
    assert suite.description and all(run.preset.description for run in runs)


def test_what_was_asked_for_is_there():
    presets = suites.presets()
    assert set("abcde") == {name[-1] for name in presets if name.startswith("ablation-")}
    assert {"hashpose", "paper", "true-poses", "colmap-fixed", "colmap-refined"} <= set(presets)
    assert {preset.base for preset in presets.values()} == {"hashpose", *PEERS}
    for name in ("smoke", "ablation", "lambda", "decoder", "curriculum", "peers", "chair-paper", "llff-fern", "fox"):
        assert name in suites.suite_names()
    assert all(scale.description for scale in suites.scales().values())
    assert all(scenario.description for scenario in suites.scenarios().values())


def test_rows_of_the_ablation_differ_in_what_they_are_about():
    scenario, scale, presets = suites.scenarios()["blender-barf-0.15"], suites.scales()["paper"], suites.presets()
    rows = {}
    for row in "abcde":
        config, _ = configured(run_of(presets[f"ablation-{row}"], scenario, scale))
        model = config.pipeline.model
        encoding = model.field.encoding
        rows[row] = (encoding.smoothing, encoding.forward_smoothing, model.curriculum.mode)
        # otherwise it is hashpose-blender
        encoding.smoothing, encoding.forward_smoothing, model.curriculum.mode = 1.0, False, "lr"
        base = base_config("hashpose-blender", "blender")
        for path in setting_paths(base.pipeline.model):
            assert value(model, path) == value(base.pipeline.model, path), path
        assert config.max_num_iterations == 200_000
    assert rows == {
        "a": (1.0, False, "lr"),
        "b": (1.0, True, "lr"),
        "c": (0.0, False, "lr"),
        "d": (1.0, False, "none"),
        "e": (0.0, False, "none"),
    }


def test_scenarios_are_the_published_protocols():
    presets, paper = suites.presets(), suites.scales()["paper"]
    found = {}
    for name in ("blender-barf-0.15", "blender-l2g", "llff-identity"):
        config, _ = configured(run_of(presets["paper"], suites.scenarios()[name], paper))
        data = config.pipeline.datamanager
        noise = data.perturbation
        found[name] = (
            data.initial_poses,
            (noise.protocol, noise.rotation, noise.translation) if data.initial_poses == "perturbed" else None,
            data.train_num_rays_per_batch,
            config.pipeline.model.sampler,
            config.pipeline.tto_lr,
        )
    # Lin et al. 2021 (BARF) for the first and the last, Chen et al. 2023 (L2G-NeRF) for the second
    assert found == {
        "blender-barf-0.15": ("perturbed", ("barf", 0.15, 0.15), 1024, "uniform", 1e-3),
        "blender-l2g": ("perturbed", ("l2g", 0.07, 0.5), 1024, "uniform", 1e-3),
        "llff-identity": ("identity", None, 2048, "inverse-depth", 3e-3),
    }


# -- expanding ---------------------------------------------------------------------------------------------------------


def test_a_suite_is_scenes_times_presets_times_seeds(tmp_path: Path):
    changes = {"scenes": {"one": "{data}/chair", "two": "demo"}, "presets": ["paper", "barf"], "seeds": [3, 5]}
    runs = expanded(tmp_path, changes=changes)
    combinations = [(run.scene, run.preset.name, run.seed) for run in runs]
    assert combinations == [
        (scene, preset, seed) for seed in (3, 5) for scene in ("one", "two") for preset in ("paper", "barf")
    ]
    assert runs[0].folder(Path("out")) == Path("out/mine/one/paper/seed_3")
    for run in runs:
        config, _ = configured(run)
        assert config.machine.seed == config.pipeline.datamanager.perturbation.seed == run.seed
        assert config.pipeline.datamanager.data == {"one": tmp_path / "scenes" / "chair", "two": CHAIR}[run.scene]


def test_some_of_a_suite(tmp_path: Path):
    changes = {"scenes": {"one": "{data}/chair", "two": "demo"}, "presets": ["paper", "barf"], "seeds": 2}
    runs = expanded(tmp_path, changes=changes, scenes=["two"], preset_names=["garf", "paper"], seeds=[7])
    assert [(run.scene, run.preset.name, run.seed) for run in runs] == [("two", "garf", 7), ("two", "paper", 7)]


def test_later_layers_win(tmp_path: Path):
    """One setting more at every layer; each must survive where no later layer states it."""
    width, lr = "pipeline.model.field.decoder.width", "optimizers.decoder.optimizer.lr"
    window, rotation = "pipeline.model.curriculum.window", "pipeline.datamanager.perturbation.rotation"
    preset = {"name": "wide", "like": "paper", "settings": {width: 48, "pipeline.model.num_samples": 9}}
    changes = {
        "scenario": "blender-barf-0.1",
        "scale": "small",
        "presets": [preset],
        "settings": {rotation: 0.2, "pipeline.tto_steps": 4},
        "families": {"hash": {width: 40, window: [0.2, 0.3], "pipeline.tto_steps": 5}, "mlp": {"steps_per_save": 1}},
        "methods": {"hashpose": {window: [0.2, 0.4]}, "barf": {"steps_per_save": 2}},
    }
    (run,) = expanded(tmp_path, changes=changes, overrides={"pipeline.model.num-samples": 11})
    config, settings = configured(run)
    small = suites.scales()["small"]
    assert value(config, "pipeline.model.num_samples") == 11  # --set over preset
    assert value(config, width) == 48  # preset over suite
    assert value(config, window) == (0.2, 0.4)  # suite over scale's scenario, method over family
    assert value(config, "pipeline.tto_steps") == 5  # family over all
    assert value(config, rotation) == 0.2  # suite over scenario
    assert value(config, "pipeline.datamanager.perturbation.translation") == 0.1  # scenario over base
    assert (
        value(config, lr)
        == small.families["hash"][lr]
        != base_config("hashpose", "blender").optimizers["decoder"]["optimizer"].lr
    )
    poses = "optimizers.camera_opt.optimizer.lr"  # scale's scenario over scale
    assert value(config, poses) == small.scenarios["blender-barf-0.1"]["families"]["hash"][poses]
    assert value(config, poses) != small.families["hash"][poses]
    assert value(config, "steps_per_save") == small.settings["steps_per_save"]  # other families' settings are not ours
    assert list(settings) == list(dict.fromkeys(key.replace("-", "_") for _, layer in run.layers for key in layer))


def test_the_worker_trains_with_what_was_recorded(tmp_path: Path):
    changes = {"presets": ["barf"], "families": {}}
    (run,) = expanded(tmp_path, changes=changes)
    planned, settings = configured(run)
    record = {"base_method": "barf", "protocol": "blender", "settings": settings}
    config = trainer_config(record, tmp_path / "out" / "mine" / "chair" / "barf" / "seed_0")
    planned_paths = set(setting_paths(planned)) - {"method_name", "output_dir", "experiment_name", "timestamp"}
    for path in planned_paths:
        assert value(config, path) == value(planned, path), path
    assert config.get_base_dir() == tmp_path / "out" / "mine" / "chair" / "barf" / "seed_0"
    assert config.method_name == "hashpose-blender"  # one that nerfstudio's other commands know


@pytest.mark.parametrize("wanted", [100, 120, 200, 333])
def test_images_and_cameras_are_scaled_to_the_same_size(wanted: int):
    """As nerfstudio does it: floats of 64 bits for images and of 32 for cameras, both rounded down."""
    for height in range(50, 1200, 7):
        factor = resolution_factor(height, wanted)
        assert 0 < factor <= 1
        assert int(height * factor) == min(height, wanted)
        for width in range(40, 1300, 13):
            camera = int((torch.tensor([width]) * torch.tensor([factor])).to(torch.int64))
            assert int(width * factor) == camera


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hint, given, expected",
    [
        (float, 1, 1.0),
        (float, 1e-3, 1e-3),
        (int, 3, 3),
        (bool, True, True),
        (Optional[float], None, None),
        (Optional[float], 2, 2.0),
        (Tuple[float, float], [0, 1], (0.0, 1.0)),
        (Tuple[str, ...], ["a", "b"], ("a", "b")),
        (Literal["off", "SE3"], "off", "off"),
        (Path, "a/b", Path("a/b")),
        (Union[int, float], 0.5, 0.5),
        (List[dict], [{"a": 1}], [{"a": 1}]),
    ],
)
def test_values_become_what_the_hint_asks_for(hint, given, expected):
    result = coerce(given, hint)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "hint, given",
    [
        (float, "1e-3"),
        (float, True),
        (int, 1.0),
        (int, True),
        (bool, 1),
        (bool, "true"),
        (Tuple[float, float], [0.1]),
        (Tuple[float, float], "01"),
        (Literal["lr", "mask"], "musk"),
        (str, 3),
        (float, None),
    ],
)
def test_other_values_are_refused(hint, given):
    with pytest.raises(ValueError, match="expects"):
        coerce(given, hint)


def test_numbers_and_words_in_yaml():
    text = "[1e-3, 1.0e-3, .5, 5., -2E+4, 12, off, yes, true, null, 1e3x]"
    assert parse_yaml(text) == [1e-3, 1e-3, 0.5, 5.0, -2e4, 12, "off", "yes", True, None, "1e3x"]


@pytest.mark.parametrize(
    "words, seeds",
    [(["3"], [0, 1, 2]), (["0", "1", "5"], [0, 1, 5]), (["4-4"], [4]), (["2-4", "4", "9"], [2, 3, 4, 9]), ([], [])],
)
def test_seeds_on_the_command_line(words, seeds):
    assert suites.parse_seeds(words) == seeds


@pytest.mark.parametrize("words", [["0"], ["a"], ["-1"], ["1-"], ["1", "x"]])
def test_seeds_that_are_none(words):
    with pytest.raises(HashPoseError, match="--seeds takes"):
        suites.parse_seeds(words)


@pytest.mark.parametrize(
    "key, given, message",
    [
        ("pipeline.model.field.encoding.gradiant", "axis", "did you mean 'pipeline.model.field.encoding.gradient'"),
        ("pipeline.model.field.encoding.gradient", "axes", "expects one of linear, product, product_norm, axis"),
        ("pipeline.model.field.encoding", 3, "is a group of settings"),
        ("optimizers.decoder.optimizer", 3, "is a group of settings"),
        ("optimizers.tables.optimizer.lr", 3, "there is no setting"),
        ("max_num_iterations", 2.5, "expects a whole number"),
        ("pipeline.model.curriculum.window", [0.1], "expects a list"),
        ("pipeline.datamanager.dataparser", "blender", "did you mean 'blender-data'"),
    ],
)
def test_wrong_settings_say_what_is_wrong(key, given, message):
    with pytest.raises(HashPoseError, match=message):
        apply(base_config("hashpose", "blender"), key, given)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scnes": {}}, "unknown field 'scnes'; did you mean 'scenes'"),
        ({"scenes": None}, "'scenes' expects names with values"),
        ({"seeds": "two"}, "'seeds' expects a whole number or a list"),
        ({"scenario": "blender-barf"}, "There is no scenario 'blender-barf'; did you mean 'blender-barf-0.1"),
        ({"scale": "smal"}, "There is no scale 'smal'; did you mean 'small'"),
        ({"presets": ["ablation_a"]}, "There is no preset 'ablation_a'; did you mean 'ablation-a'"),
        ({"presets": []}, "has no presets"),
        ({"presets": [{"like": "paper"}]}, "lacks the field 'name'"),
        ({"presets": [{"name": "a", "like": "papers"}]}, "like 'papers', which does not exist; did you mean 'paper'"),
        ({"presets": [{"name": "../a", "like": "paper"}]}, "a name has letters, digits"),
        ({"presets": [{"name": "a", "base": "barf"}]}, "lacks the field 'family'"),
        ({"presets": [{"name": "a", "base": "barf", "family": "cnn"}]}, "expects one of hash, mlp, nerfacto"),
        ({"families": {"cnn": {}}}, "'families' expects"),
        ({"methods": {"bart": {}}}, "unknown method 'bart'; did you mean 'barf'"),
        ({"scenes": {"a": "{data}/chairs"}}, "The scene 'a' is not there: no .*/scenes/chairs"),
        ({"scenes": {"../a": "demo"}}, "a name has letters, digits"),
    ],
)
def test_wrong_suites_say_what_is_wrong(tmp_path: Path, changes, message):
    with pytest.raises(HashPoseError, match=message) as caught:
        expanded(tmp_path, changes=changes)
    assert "\n" not in str(caught.value)


def test_a_setting_of_a_suite_is_refused_with_its_place(tmp_path: Path):
    preset = {"name": "mine", "like": "paper", "settings": {"pipeline.model.num_sample": 3}}
    (run,) = expanded(tmp_path, changes={"presets": [preset]})
    with pytest.raises(
        HashPoseError, match="The preset 'mine': there is no setting 'pipeline.model.num_sample'; did you"
    ):
        configured(run)
    preset = {"name": "mine", "base": "barv", "family": "mlp"}
    (run,) = expanded(tmp_path, changes={"presets": [preset]})
    with pytest.raises(
        HashPoseError, match="The preset 'mine': there is no method 'barv' to build on; did you mean 'barf'"
    ):
        configured(run)


def test_a_key_that_is_there_twice_is_an_error(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("scenes: {a: demo}\nseeds: 1\nscenes: {b: demo}\n")
    with pytest.raises(HashPoseError, match="is not YAML in line 1: 'scenes' is there twice"):
        suites.load_suite(str(path))
    merged = parse_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3")
    assert merged["b"] == {"x": 1, "y": 3}


def test_files_that_are_no_suites(tmp_path: Path):
    for content, message in (
        ("a: [", "is not YAML in line"),
        ("- a", "holds no names"),
        ("\xff", "cannot be read|holds no"),
    ):
        (tmp_path / "mine.yaml").write_bytes(content.encode("latin-1"))
        with pytest.raises(HashPoseError, match=message):
            suites.load_suite(str(tmp_path / "mine.yaml"))
    with pytest.raises(HashPoseError, match="cannot be read"):
        suites.load_suite(str(tmp_path / "none.yaml"))
    with pytest.raises(HashPoseError, match="There is no suite 'smokes'; did you mean 'smoke'"):
        suites.load_suite("smokes")


def test_a_scene_in_a_place_of_the_command_line(tmp_path: Path):
    suite = load(tmp_path, scenes={"chair": ["{data}/nowhere", "{data}/chair"]})
    assert suites.scene_folder(suite, "chair", tmp_path / "scenes") == tmp_path / "scenes" / "chair"
    with pytest.raises(HashPoseError, match="--data"):
        suites.scene_folder(suite, "chair", None)
