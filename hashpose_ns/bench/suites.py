"""Suites, scenarios, scales and presets, read from YAML, and a suite expanded into runs.

A run's settings are layers on its preset's base method, later ones winning:

    base method < scenario < scale < suite < preset < `--set`

Scenario, scale and suite can tell families of methods apart (`families`: hash grids, MLPs, nerfacto) and single methods
(`methods`); a scale also scenarios (`scenarios`), as short training wants other rates on other data. The preset comes
after all of them: what defines it is what it states. What a preset does not state, such as the sizes of a base method,
a scale can shrink.

Nothing heavy is imported here: `hashpose-bench list` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import yaml

from hashpose_ns.bench.entries import (
    EntryT,
    Layer,
    Preset,
    Scale,
    Scenario,
    Settings,
    Suite,
    check_name,
    inherited,
    parse_yaml,
    read_all,
    read_entry,
    read_file,
)
from hashpose_ns.bench.settings import nearest, normalised
from hashpose_ns.demo import DEMO_SCENE
from hashpose_ns.errors import HashPoseError

DATA_FOLDER = Path(__file__).parent / "data"
SUITES_FOLDER = DATA_FOLDER / "suites"

UNATTENDED: Settings = {
    "vis": "tensorboard",
    "logging.local_writer.enable": False,
    "steps_per_eval_batch": 0,
    "steps_per_eval_image": 0,
    "steps_per_eval_all_images": 0,
}
"""Settings of all runs: nobody watches, and the pose log follows training."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a preset on a scene with a seed."""

    suite: str
    scale: Scale
    scenario: Scenario
    scene: str
    preset: Preset
    seed: int
    layers: Tuple[Tuple[str, Settings], ...]
    """Where settings come from -> settings; later ones win."""

    def folder(self, output_dir: Path) -> Path:
        """Where the run goes: nerfstudio's output_dir / experiment_name / method_name / timestamp."""
        return output_dir / self.suite / self.scene / self.preset.name / f"seed_{self.seed}"


@lru_cache(maxsize=None)
def presets() -> Dict[str, Preset]:
    """The presets that come with the package."""
    return read_all(Preset, DATA_FOLDER / "presets.yaml")


@lru_cache(maxsize=None)
def scenarios() -> Dict[str, Scenario]:
    """The scenarios that come with the package."""
    return read_all(Scenario, DATA_FOLDER / "scenarios.yaml")


@lru_cache(maxsize=None)
def scales() -> Dict[str, Scale]:
    """The scales that come with the package."""
    return read_all(Scale, DATA_FOLDER / "scales.yaml")


def suite_names() -> List[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in SUITES_FOLDER.glob("*.yaml"))


def load_suite(name_or_path: str) -> Suite:
    """A suite that comes with the package, or one from a file.

    Raises:
        HashPoseError: there is none, or it is not well formed.
    """
    if name_or_path in suite_names():
        path = SUITES_FOLDER / f"{name_or_path}.yaml"
    else:
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            raise HashPoseError(f"There is no suite '{name_or_path}'{nearest(name_or_path, suite_names())}")
    suite = read_entry(Suite, path.stem, read_file(path), f"The suite '{path.stem}'")
    for scene in suite.scenes:
        check_name(scene, f"The scene '{scene}' of the suite '{suite.name}'")
    return suite


# -- expanding ---------------------------------------------------------------------------------------------------------


def pick(kind: str, name: str, known: Mapping[str, EntryT]) -> EntryT:
    """The entry of a name.

    Raises:
        HashPoseError: there is none.
    """
    if name not in known:
        raise HashPoseError(f"There is no {kind} '{name}'{nearest(name, known)}")
    return known[name]


def suite_presets(suite: Suite, names: Sequence[str] = ()) -> List[Preset]:
    """The presets of a suite, or those of the given names, which may be any that come with the package.

    Raises:
        HashPoseError: one is unknown, or not well formed.
    """
    known = dict(presets())
    wanted: List[str] = []
    for entry in suite.presets:
        if isinstance(entry, dict):
            own = dict(entry)
            name = own.pop("name", None)
            if name is None:
                raise HashPoseError(f"A preset of the suite '{suite.name}' lacks the field 'name'.")
            where = f"The preset '{name}' of the suite '{suite.name}'"
            content = read_file(DATA_FOLDER / "presets.yaml") if "like" in own else {}
            known[name] = read_entry(Preset, name, inherited(own, content, where), where)
            entry = name
        wanted.append(entry)
    if not wanted:
        raise HashPoseError(f"The suite '{suite.name}' has no presets.")
    return [pick("preset", name, known) for name in dict.fromkeys(names or wanted)]


def scene_folder(suite: Suite, scene: str, data: Optional[Path]) -> Path:
    """The folder of a scene, absolute.

    Raises:
        HashPoseError: it is not there, or `data` is needed and not given.
    """
    places = suite.scenes[scene]
    candidates = []
    for place in [places] if isinstance(places, str) else places:
        if place == "demo":
            return DEMO_SCENE
        if "{data}" in place and data is None:
            raise HashPoseError(f"The scene '{scene}' is {place}: give the folder {{data}} stands for with --data.")
        candidates.append(Path(place.replace("{data}", str(data))).expanduser().absolute())
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise HashPoseError(f"The scene '{scene}' is not there: no {' and no '.join(map(str, candidates))}.")


def parse_seeds(words: Sequence[str]) -> List[int]:
    """Seeds from the command line: `3` is three of them, 0 1 2; `0 1 5` are these; `4-7` is a range.

    Raises:
        HashPoseError: a word is none of these.
    """
    if len(words) == 1 and words[0].isdecimal() and int(words[0]) > 0:
        return list(range(int(words[0])))
    seeds: List[int] = []
    for word in words:
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (len(words) == 1 and not dash):
            raise HashPoseError(f"--seeds takes a number of seeds (3), seeds (0 1 5) or a range (4-4), not '{word}'.")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


def parse_overrides(words: Sequence[str]) -> Settings:
    """Settings from the command line: `path=value` with a value as in YAML.

    Raises:
        HashPoseError: a word is none.
    """
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise HashPoseError(f"--set takes path=value, such as max_num_iterations=500, not '{word}'.")
        try:
            overrides[key] = parse_yaml(value)
        except yaml.YAMLError:
            overrides[key] = value
    return overrides


def expand(
    suite: Suite,
    scale: str = "",
    scenes: Sequence[str] = (),
    preset_names: Sequence[str] = (),
    seeds: Sequence[int] = (),
    data: Optional[Path] = None,
    overrides: Optional[Settings] = None,
) -> List[Run]:
    """All runs of a suite: seed by seed, so that every preset has a result early.

    Args:
        suite: the suite.
        scale: another scale than the suite's.
        scenes: some of its scenes.
        preset_names: some of its presets, or others that come with the package.
        seeds: other seeds than the suite's.
        data: folder that `{data}` stands for.
        overrides: settings that win over all others.

    Raises:
        HashPoseError: a name is unknown, or a scene is not there.
    """
    the_scale = pick("scale", scale or suite.scale, scales())
    known_scenarios = scenarios()
    scenario = pick("scenario", suite.scenario, known_scenarios)
    for name in the_scale.scenarios:
        pick("scenario", name, known_scenarios)
    for scene in scenes:
        if scene not in suite.scenes:
            raise HashPoseError(f"The suite '{suite.name}' has no scene '{scene}'{nearest(scene, suite.scenes)}")
    chosen = suite_presets(suite, preset_names)
    folders = {scene: scene_folder(suite, scene, data) for scene in scenes or suite.scenes}
    where = f"The scale '{the_scale.name}' for the scenario '{scenario.name}'"
    special = read_entry(Layer, scenario.name, the_scale.scenarios.get(scenario.name, {}), where)

    bases = {preset.base for preset in [*presets().values(), *chosen]}
    for layer in (scenario, the_scale, special, suite):
        for method in layer.methods:
            if method not in bases:
                raise HashPoseError(
                    f"'{layer.name}' has settings for the unknown method '{method}'{nearest(method, bases)}"
                )

    def run(scene: str, preset: Preset, seed: int) -> Run:
        ours = {
            "pipeline.datamanager.dataparser": scenario.dataparser,
            "pipeline.datamanager.data": str(folders[scene]),
            "machine.seed": seed,
            "pipeline.datamanager.perturbation.seed": seed,
            **UNATTENDED,
        }
        layers = {
            "The runner": ours,
            f"The scenario '{scenario.name}'": scenario.of(preset),
            f"The scale '{the_scale.name}'": the_scale.of(preset),
            where: special.of(preset),
            f"The suite '{suite.name}'": suite.of(preset),
            f"The preset '{preset.name}'": preset.settings,
            "--set": overrides or {},
        }
        return Run(
            suite=suite.name,
            scale=the_scale,
            scenario=scenario,
            scene=scene,
            preset=preset,
            seed=seed,
            layers=tuple(
                (source, {normalised(key): value for key, value in layer.items()}) for source, layer in layers.items()
            ),
        )

    all_seeds = seeds or (range(suite.seeds) if isinstance(suite.seeds, int) else suite.seeds)
    return [run(scene, preset, seed) for seed in all_seeds for scene in folders for preset in chosen]
