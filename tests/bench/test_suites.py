"""The suites that are there apply cleanly, settings win in the order they should, wrong files say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
import torch
import yaml
from scenes import CHAIR
from tiny_suites import suite_content

from hashpose_ns.bench import suites
from hashpose_ns.bench.configs import base_config, configured, parse, resolution_factor, trainer_config
from hashpose_ns.bench.measures import MEASURES
from hashpose_ns.bench.suites import read_flags
from hashpose_ns.errors import HashPoseError
from hashpose_ns.peers.methods import PEERS

RECORDED = sorted((Path(__file__).parents[2] / "benchmarks" / "suites").glob("*.yaml"))


def value(config, path: str):
    """A config's setting."""
    for name in path.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def load(folder: Path, **changes) -> suites.Suite:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(suite_content(folder, **changes)))
    return suites.load_suite(str(path))


def expanded(folder: Path, **arguments) -> List[suites.Run]:
    changes = arguments.pop("changes", {})
    return suites.expand(load(folder, **changes), data=folder / "scenes", **arguments)


def run_of(preset: str, scenario: str, scale: str) -> suites.Run:
    suite = suites.Suite(name="all", scenario=scenario, scale=scale, scenes={"demo": "demo"}, presets=[preset])
    (run,) = suites.expand(suite)
    return run


# -- what is there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(suites.presets()))
def test_every_preset_makes_a_model_with_what_it_states(preset: str):
    from nerfstudio.data.scene_box import SceneBox

    run = run_of(preset, "blender-barf-0.15", "small")
    config = configured(run)
    stated = read_flags(run.preset.flags)
    assert {key: run.settings[key] for key in stated} == stated, "a preset's flags win"
    model = config.pipeline.model.setup(
        scene_box=SceneBox(torch.tensor([[-1.5] * 3, [1.5] * 3])), num_train_data=3, metadata={}
    )
    groups = set(model.get_param_groups())
    poses = {"camera_opt", "camera_warp"}
    assert groups - poses == set(config.optimizers) - poses
    assert ("camera_opt" in groups) == (preset not in ("true-poses", "colmap-fixed"))


@pytest.mark.parametrize("scale", sorted(suites.scales()))
@pytest.mark.parametrize("scenario", sorted(suites.scenarios()))
def test_every_scale_applies_to_a_method_of_each_family_in_every_scenario(scale: str, scenario: str):
    for preset in ("paper", "barf", "nerfacto-poses"):
        configured(run_of(preset, scenario, scale))


@pytest.mark.parametrize("name", [*suites.suite_names(), *map(str, RECORDED)])
def test_every_suite_expands_and_its_flags_are_flags(name: str, tmp_path: Path):
    suite = suites.load_suite(name)
    for place in suite.scenes.values():
        folders = place["folder"] if isinstance(place, dict) else place
        first = folders if isinstance(folders, str) else folders[0]
        (tmp_path / Path(first).name).mkdir(exist_ok=True)
    runs = suites.expand(suite, data=tmp_path)
    assert len({run.folder(tmp_path) for run in runs}) == len(runs) > 0
    assert suite.description and {*suite.measures, *(m for run in runs for m in run.preset.measures)} <= set(MEASURES)
    if name in map(str, RECORDED):  # the package's presets are parsed above
        # What a scene sets and what a preset sets are flags each, whatever they are combined with.
        for run in [*{run.scene: run for run in runs}.values(), *{run.preset.name: run for run in runs}.values()]:
            configured(run)


def test_the_suite_of_the_documentation_works(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text()
    (tmp_path / "mine.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "garden").mkdir()
    runs = suites.expand(suites.load_suite(str(tmp_path / "mine.yaml")), data=tmp_path)
    assert len(runs) == 2 * 2 * 3
    modes = {(run.scene, run.preset.name): configured(run).pipeline for run in runs[:4]}
    assert modes["garden-noisy", "hashpose"].datamanager.initial_poses == "perturbed"
    assert modes["garden", "no-curriculum"].model.curriculum.mode == "none"


def test_what_was_asked_for_is_there():
    presets = suites.presets()
    assert set("abcde") == {name[-1] for name in presets if name.startswith("ablation-")}
    assert {"hashpose", "paper", "true-poses", "colmap-fixed", "colmap-refined"} <= set(presets)
    bases = {preset.base for preset in presets.values()}
    assert bases == {"hashpose", *PEERS, "sfm-given", "sfm-incremental", "sfm-global"}
    for name in ("smoke", "ablation", "lambda", "decoder", "curriculum", "peers", "chair-paper", "llff-fern", "fox"):
        assert name in suites.suite_names()
    entries = [*presets.values(), *suites.scales().values(), *suites.scenarios().values()]
    assert all(entry.description for entry in entries)


def test_rows_of_the_ablation_differ_in_what_they_are_about():
    rows = {}
    for row in "abcde":
        config = configured(run_of(f"ablation-{row}", "blender-barf-0.15", "paper"))
        encoding, curriculum = config.pipeline.model.field.encoding, config.pipeline.model.curriculum
        rows[row] = (encoding.smoothing, encoding.forward_smoothing, curriculum.mode)
        encoding.smoothing, encoding.forward_smoothing, curriculum.mode = 1.0, False, "lr"
        assert (
            config.pipeline.model == base_config("hashpose-blender", "blender").pipeline.model
        )  # else hashpose-blender
        assert config.max_num_iterations == 200_000
    assert rows == {
        "a": (1.0, False, "lr"),
        "b": (1.0, True, "lr"),
        "c": (0.0, False, "lr"),
        "d": (1.0, False, "none"),
        "e": (0.0, False, "none"),
    }


def test_scenarios_are_the_published_protocols():
    found = {}
    for name in ("blender-barf-0.15", "blender-l2g", "llff-identity"):
        config = configured(run_of("paper", name, "paper"))
        data, noise = config.pipeline.datamanager, config.pipeline.datamanager.perturbation
        perturbed = data.initial_poses == "perturbed"
        found[name] = (
            data.initial_poses,
            (noise.protocol, noise.rotation, noise.translation) if perturbed else None,
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
    scenes = {"one": "{data}/chair", "two": {"folder": "demo", "flags": "--pipeline.tto-steps 7"}}
    changes = {"scenes": scenes, "presets": ["paper", "barf"], "seeds": [3, 5]}
    runs = expanded(tmp_path, changes=changes)
    combinations = [(run.scene, run.preset.name, run.seed) for run in runs]
    assert combinations == [
        (scene, preset, seed) for seed in (3, 5) for scene in ("one", "two") for preset in ("paper", "barf")
    ]
    assert runs[0].folder(Path("out")) == Path("out/mine/one/paper/seed_3")
    for run in runs:
        config = configured(run)
        assert config.machine.seed == config.pipeline.datamanager.perturbation.seed == run.seed
        assert config.pipeline.datamanager.data == {"one": tmp_path / "scenes" / "chair", "two": CHAIR}[run.scene]
        assert config.pipeline.tto_steps == {"one": 2, "two": 7}[run.scene]


def test_some_of_a_suite(tmp_path: Path):
    presets = ["paper", {"name": "once", "like": "barf", "scenes": ["one"]}]
    changes = {"scenes": {"one": "{data}/chair", "two": "demo"}, "presets": presets, "seeds": 2}
    assert len(expanded(tmp_path, changes=changes)) == 2 * (2 + 1)
    runs = expanded(tmp_path, changes=changes, scenes=["two"], preset_names=["garf", "paper"], seeds=[7])
    assert [(run.scene, run.preset.name, run.seed) for run in runs] == [("two", "garf", 7), ("two", "paper", 7)]


def test_later_layers_win(tmp_path: Path):
    """One setting more at every layer; each must survive where no later layer states it."""
    changes = {
        "scenario": "blender-barf-0.1",
        "scale": "small",
        "presets": [
            {"name": "wide", "like": "paper", "flags": "--pipeline.model.field.decoder.width 48 --pipeline.tto_rays 9"}
        ],
        "flags": "--pipeline.datamanager.perturbation.rotation 0.2 --pipeline.tto-steps 4",
        "families": {
            "hash": "--pipeline.model.field.decoder.width 40 --pipeline.tto-steps 5",
            "mlp": "--steps-per-save 1",
        },
        "methods": {"hashpose": "--pipeline.model.curriculum.window 0.2 0.4", "barf": "--steps-per-save 2"},
    }
    overrides = suites.parse_overrides(["pipeline.tto-rays=11"])
    (run,) = expanded(tmp_path, changes=changes, overrides=overrides)
    config, base = configured(run), base_config("hashpose", "blender")
    assert value(config, "pipeline.tto_rays") == 11  # --set over preset, however it is spelled
    assert value(config, "pipeline.model.field.decoder.width") == 48  # preset over suite
    assert value(config, "pipeline.model.curriculum.window") == (0.2, 0.4)  # suite's method over scale
    assert value(config, "pipeline.tto_steps") == 5  # family over all
    assert value(config, "pipeline.datamanager.perturbation.rotation") == 0.2  # suite over scenario
    assert value(config, "pipeline.datamanager.perturbation.translation") == 0.1  # scenario over base
    rate = "optimizers.camera_opt.optimizer.lr"
    assert value(config, rate) == 6e-3 != value(base, rate)  # the scale for this scenario over the scale
    assert config.steps_per_save == 1000  # the scale; other families' flags are not ours


def test_the_worker_trains_with_what_was_recorded(tmp_path: Path):
    (run,) = expanded(tmp_path, changes={"presets": ["barf"], "families": {}})
    planned = configured(run)
    record = {"base_method": "barf", "protocol": "blender", "settings": run.settings}
    config = trainer_config(record, tmp_path / "out" / "mine" / "chair" / "barf" / "seed_0")
    assert config.pipeline == planned.pipeline and config.optimizers == planned.optimizers
    assert config.get_base_dir() == tmp_path / "out" / "mine" / "chair" / "barf" / "seed_0"
    assert config.method_name == "hashpose-blender"  # one that nerfstudio's other commands know


@pytest.mark.parametrize("wanted", [100, 120, 200, 333])
def test_images_and_cameras_are_scaled_to_the_same_size(wanted: int):
    """As nerfstudio does it: floats of 64 bits for images and of 32 for cameras, both rounded down."""
    widths = torch.arange(40, 1300, 13)
    for height in range(50, 1200, 7):
        factor = resolution_factor(height, wanted)
        assert 0 < factor <= 1 and int(height * factor) == min(height, wanted)
        cameras = (widths * torch.tensor([factor])).to(torch.int64)
        assert cameras.tolist() == [int(width * factor) for width in widths.tolist()]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_flags_are_words_of_a_command_line():
    text = ["--a.b-c 0.1 0.3 --d True", "--a.b_c=2 --name 'two words' --low -1e-3"]
    assert read_flags(text) == {"a.b_c": "2", "d": "True", "name": "'two words'", "low": "-1e-3"}


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
    "flags, message",
    [
        ("--pipeline.model.field.encoding.gradiant axis", "did you mean --pipeline.model.field.encoding.gradient"),
        ("--pipeline.model.field.encoding.gradient axes", "'axes'.*[Ee]xpected one of"),
        ("--pipeline.model.field.encoding 3", "nrecognized options: --pipeline.model.field.encoding"),
        ("--max-num-iterations 2.5", "max-num-iterations"),
        ("--pipeline.model.curriculum.window 0.1", "window"),
        ("--pipeline.datamanager.dataparser blender", "blender"),
    ],
)
def test_wrong_settings_say_what_is_wrong_in_a_sentence(flags, message):
    with pytest.raises(HashPoseError, match=message) as caught:
        parse(base_config("hashpose", "blender"), read_flags(flags))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scnes": {}}, "unknown field 'scnes'; did you mean 'scenes'"),
        ({"scenes": None}, "'scenes' expects Dict"),
        ({"seeds": "two"}, r"'seeds' expects Union\[int, List\[int\]\], not 'two'"),
        ({"scenario": "blender-barf"}, "There is no scenario 'blender-barf'; did you mean 'blender-barf-0.1"),
        ({"scale": "smal"}, "There is no scale 'smal'; did you mean 'small'"),
        ({"presets": ["ablation_a"]}, "There is no preset 'ablation_a'; did you mean 'ablation-a'"),
        ({"presets": []}, "has no presets"),
        ({"presets": [{"like": "paper"}]}, "lacks the field 'name'"),
        ({"presets": [{"name": "a", "like": "papers"}]}, "like 'papers', which does not exist; did you mean 'paper'"),
        ({"presets": [{"name": "../a", "like": "paper"}]}, "a name has letters, digits"),
        ({"presets": [{"name": "a", "base": "barf"}]}, "lacks the field 'family'"),
        ({"presets": [{"name": "a", "base": "barf", "family": "cnn"}]}, "'family' expects"),
        ({"presets": [{"name": "a", "like": "paper", "scenes": ["b"]}]}, "has no scene 'b'"),
        ({"families": {"cnn": {}}}, "'families' expects"),
        ({"methods": {"bart": ""}}, "unknown method 'bart'; did you mean 'barf'"),
        ({"scenes": {"a": "{data}/chairs"}}, "The scene 'a' is not there: no .*/scenes/chairs"),
        ({"scenes": {"../a": "demo"}}, "a name has letters, digits"),
        ({"flags": "max-num-iterations 3"}, "The suite 'mine': 'max-num-iterations' is not a flag"),
        ({"flags": "--a 'b"}, "The suite 'mine': the flags .* cannot be split"),
    ],
)
def test_wrong_suites_say_what_is_wrong(tmp_path: Path, changes, message):
    with pytest.raises(HashPoseError, match=message) as caught:
        expanded(tmp_path, changes=changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "preset, message",
    [
        (
            {"like": "paper", "flags": "--pipeline.model.num-sample 3"},
            "The preset 'mine': unrecognized .*; did you mean",
        ),
        ({"base": "barv", "family": "mlp"}, "The preset 'mine': there is no method 'barv' .*; did you mean 'barf'"),
    ],
)
def test_a_setting_of_a_suite_is_refused_with_its_place(tmp_path: Path, preset, message):
    (run,) = expanded(tmp_path, changes={"presets": [{"name": "mine", **preset}]})
    with pytest.raises(HashPoseError, match=message):
        configured(run)


def test_files_that_are_no_suites(tmp_path: Path):
    for content, message in (
        ("scenes: {a: demo}\nseeds: 1\nscenes: {b: demo}\n", "is not YAML in line 1: 'scenes' is there twice"),
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
