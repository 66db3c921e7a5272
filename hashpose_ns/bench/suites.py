"""Suites, scenarios, scales and presets: what the YAML files in `data/` hold, and a suite expanded into runs.

Settings are flags, written as after `ns-train METHOD`. A run has those of its layers, later ones winning:

    base method < scenario < scale < suite < scene < preset < `--set`

Scenario, scale and suite can tell families of methods apart (`families`: hash grids, MLPs, nerfacto, structure from
motion) and single methods (`methods`); a scale also scenarios (`scenarios`), as short training wants other rates on
other data. The preset comes after all of them: what defines it is what it states. What a preset does not state, such as
the sizes of a base method, a scale can shrink.

Nothing heavy is imported here: `hashpose-bench list` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from dataclasses import MISSING, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterable, List, Literal, Mapping, Optional, Sequence, Type, TypeVar, Union, get_type_hints

import yaml

from hashpose_ns.demo import DEMO_SCENE
from hashpose_ns.errors import HashPoseError, one_line

DATA_FOLDER = Path(__file__).parent / "data"
SUITES_FOLDER = DATA_FOLDER / "suites"
DATAPARSER = "pipeline.datamanager.dataparser"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of scenes, presets and suites become folders."""
WORDS = ("title", "description", "paper", "deviations")
"""What an entry that is like another one does not inherit."""
UNATTENDED = (
    "--vis tensorboard --logging.local-writer.enable False "
    "--steps-per-eval-batch 0 --steps-per-eval-image 0 --steps-per-eval-all-images 0"
)
"""Flags of all runs: nobody watches, and the pose log follows training."""

Settings = Dict[str, str]
"""Dotted path -> value, as typed on a command line."""
Flags = Union[str, List[str]]
Measures = Dict[str, Dict[str, Union[bool, int, float, str]]]
Family = Literal["hash", "mlp", "nerfacto", "sfm"]
SFM_METHODS = ("sfm-given", "sfm-incremental", "sfm-global")
"""What a preset without a field is built on: triangulation and bundle adjustment from the given poses, or COLMAP's
incremental or global mapper, which need none. Flags of fields are read and change nothing; those of data, initial poses
and `--matches.features` count."""
EntryT = TypeVar("EntryT", bound="Entry")


def read_flags(flags: Flags) -> Settings:
    """`--a.b-c 1 2 --d True` as {"a.b_c": "1 2", "d": "True"}; of a flag given twice the last.

    Raises:
        HashPoseError: a word is neither a flag nor a flag's value.
    """
    text = flags if isinstance(flags, str) else " ".join(flags)
    found: Dict[str, List[str]] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise HashPoseError(f"the flags {text!r} cannot be split into words: {one_line(error)}.") from None
    key = None
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            key = flag[2:].replace("-", "_")
            found[key] = [value] if equals else []
        elif key is None:
            raise HashPoseError(f"'{word}' is not a flag; write flags as after ns-train, such as --seed 3.")
        else:
            found[key].append(word)
    return {key: shlex.join(values) for key, values in found.items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: `; did you mean 'X'?` if one is close, else a full stop."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else "."


# -- entries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What suites, scenarios, scales and presets have in common."""

    name: str
    """Its name in the file, or the file's."""
    description: str = ""
    """What it is, in a sentence or two."""
    flags: Flags = ""
    """Settings, as flags of ns-train."""


@dataclass(frozen=True, kw_only=True)
class Layer(Entry):
    """Flags of which some are for one family of methods, or one method, only."""

    families: Dict[Family, Flags] = field(default_factory=dict)
    """Flags for the methods of a family, on top of the others."""
    methods: Dict[str, Flags] = field(default_factory=dict)
    """Flags for what is built on one method (a preset's `base`), on top of its family's."""

    def of(self, preset: Preset) -> Settings:
        """The settings for a preset."""
        layers = (self.flags, self.families.get(preset.family, ""), self.methods.get(preset.base, ""))
        return {key: value for flags in layers for key, value in read_flags(flags).items()}


@dataclass(frozen=True, kw_only=True)
class Preset(Entry):
    """A method with the settings that make it what it is."""

    base: str
    """The method it is built on: `hashpose`, this package's for the scenario's protocol; another of its methods; a
    peer; or one of `SFM_METHODS`."""
    family: Family
    """Which rates and sizes of scales and scenarios are meant for it; `sfm` has neither."""
    title: str = ""
    """Name in tables; by default the preset's name."""
    paper: str = ""
    """The table or row of the paper it stands for."""
    deviations: str = ""
    """Where it differs from what it stands for."""
    scenes: List[str] = field(default_factory=list)
    """The suite's scenes it runs on; by default all."""
    measures: Measures = field(default_factory=dict)
    """Further measures, beside the suite's."""


@dataclass(frozen=True, kw_only=True)
class Scenario(Layer):
    """Where the images come from, and what is known of the poses at the start."""

    protocol: Literal["blender", "llff", "captures"]
    """Whose settings of data, rays, initial poses and evaluation the base methods have: those of `hashpose-blender`,
    `hashpose-llff` or `hashpose`."""
    dataparser: str
    """nerfstudio's name for it, such as blender-data."""
    image_height: Optional[int] = None
    """Height in pixels that a scale's resolution is a fraction of; null takes the images as they are."""


@dataclass(frozen=True, kw_only=True)
class Scale(Layer):
    """How long and how large: image size, steps, rays, samples, networks, and rates that suit the length."""

    resolution: Optional[float] = None
    """Fraction of the scenario's image height; null takes images as they are. Images are never enlarged."""
    scenarios: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """More `flags`, `families` and `methods` for some scenarios, by their names."""


@dataclass(frozen=True, kw_only=True)
class Suite(Layer):
    """What is compared on what."""

    scenario: str
    """The scenario's name."""
    scale: str = "own"
    """Name of the scale it is meant for; `--scale` takes another."""
    scenes: Dict[str, Union[str, List[str], Dict[str, Flags]]]
    """Name -> folder (of several the first that exists), or both `folder` and `flags`. `{data}` stands for `--data`,
    `demo` for the packaged scene."""
    presets: List[Union[str, Dict[str, Any]]]
    """Names of presets, or presets of its own, written as in presets.yaml with their `name`."""
    seeds: Union[int, List[int]] = 1
    """Seeds, or their number."""
    train: bool = True
    """Whether to train; without it only `measures` are taken, of the poses training would start from."""
    evaluate: bool = True
    """Whether to render and score held-out images after training."""
    measures: Measures = field(default_factory=dict)
    """Further measures of every run: name -> options, see hashpose_ns/bench/measures.py."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a preset on a scene with a seed."""

    suite: Suite
    scale: Scale
    scenario: Scenario
    scene: str
    preset: Preset
    seed: int
    layers: Dict[str, Settings]
    """Where settings come from -> settings; later ones win."""

    @property
    def settings(self) -> Settings:
        """All settings."""
        return {key: value for layer in self.layers.values() for key, value in layer.items()}

    def folder(self, output_dir: Path) -> Path:
        """Where the run goes: nerfstudio's output_dir / experiment_name / method_name / timestamp."""
        return output_dir / self.suite.name / self.scene / self.preset.name / f"seed_{self.seed}"


# -- reading -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error; YAML's own loader takes the last."""

    def construct_mapping(self, node, deep=False):
        """Builds a dictionary."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> Dict[str, Any]:
    """Reads a YAML file that maps names to something.

    Raises:
        HashPoseError: it cannot be read, or holds something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise HashPoseError(f"The file {path} cannot be read: {one_line(error)}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise HashPoseError(f"The file {path} is not YAML{where}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(content, dict):
        raise HashPoseError(f"The file {path} holds no names with values.")
    return content


def check_name(name: str, where: str) -> None:
    """Raises HashPoseError unless a name can be that of a folder; `where` is what the message calls it."""
    if not NAME.fullmatch(name):
        raise HashPoseError(f"{where}: a name has letters, digits, '.', '_' and '-' only.")


def read_entry(cls: Type[EntryT], name: str, content: Any, where: str) -> EntryT:
    """Makes an entry of what YAML holds.

    Args:
        cls: suite, scenario, scale or preset.
        name: its name.
        content: field -> value.
        where: what a message calls it.

    Raises:
        HashPoseError: a field is unknown, missing or of another type, or the name cannot be that of a folder.
    """
    import typeguard

    check_name(str(name), where)
    if not isinstance(content, dict):
        raise HashPoseError(f"{where} must hold names with values, not {content!r}.")
    known = {entry.name: entry for entry in dataclasses.fields(cls) if entry.name != "name"}
    hints = get_type_hints(cls)
    for key, value in content.items():
        if key not in known:
            raise HashPoseError(f"{where} has an unknown field '{key}'{nearest(str(key), known)}")
        try:
            typeguard.check_type(
                value, hints[key], collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS
            )
        except typeguard.TypeCheckError:
            wanted = str(hints[key]).replace("typing.", "").replace("<class '", "").replace("'>", "")
            raise HashPoseError(f"{where}: '{key}' expects {wanted}, not {value!r}.") from None
    for key, entry in known.items():
        if key not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise HashPoseError(f"{where} lacks the field '{key}'.")
    return cls(name=str(name), **content)


def inherited(content: Any, others: Mapping[str, Any], where: str) -> Any:
    """An entry's content with what it takes over from the one it is `like`: all but its words; flags add up."""
    if not isinstance(content, dict) or "like" not in content:
        return content
    own = dict(content)
    model = own.pop("like")
    if model not in others:
        raise HashPoseError(f"{where} is like '{model}', which does not exist{nearest(str(model), others)}")
    parent = inherited(others[model], others, f"The entry '{model}'")
    flags = [text for entry in (parent, own) for text in _listed(entry.get("flags", ""))]
    return {key: value for key, value in parent.items() if key not in WORDS} | own | {"flags": flags}


def _listed(flags: Flags) -> List[str]:
    return [flags] if isinstance(flags, str) else list(flags)


def _read_all(cls: Type[EntryT], file: str) -> Dict[str, EntryT]:
    content, kind = read_file(DATA_FOLDER / file), cls.__name__.lower()
    return {
        name: read_entry(cls, name, inherited(entry, content, f"The {kind} '{name}'"), f"The {kind} '{name}'")
        for name, entry in content.items()
    }


@lru_cache(maxsize=None)
def presets() -> Dict[str, Preset]:
    """The presets that come with the package."""
    return _read_all(Preset, "presets.yaml")


@lru_cache(maxsize=None)
def scenarios() -> Dict[str, Scenario]:
    """The scenarios that come with the package."""
    return _read_all(Scenario, "scenarios.yaml")


@lru_cache(maxsize=None)
def scales() -> Dict[str, Scale]:
    """The scales that come with the package."""
    return _read_all(Scale, "scales.yaml")


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
    content = dict(read_file(DATA_FOLDER / "presets.yaml"))  # of which own presets can be like any, and like each other
    wanted: List[str] = []
    for entry in suite.presets:
        if isinstance(entry, dict):
            own = dict(entry)
            name = own.pop("name", None)
            if name is None:
                raise HashPoseError(f"A preset of the suite '{suite.name}' lacks the field 'name'.")
            where = f"The preset '{name}' of the suite '{suite.name}'"
            content[name] = inherited(own, content, where)
            known[name] = read_entry(Preset, name, content[name], where)
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
    for place in _listed(places.get("folder", "demo") if isinstance(places, dict) else places):
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
    """Settings from the command line: `path=value`, the value as after a flag.

    Raises:
        HashPoseError: a word is none.
    """
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise HashPoseError(f"--set takes path=value, such as max_num_iterations=500, not '{word}'.")
        overrides.update(read_flags(f"--{key.removeprefix('--')} {value}"))
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
        HashPoseError: a name is unknown, a scene is not there, or flags are malformed.
    """
    the_scale = pick("scale", scale or suite.scale, scales())
    scenario = pick("scenario", suite.scenario, scenarios())
    for name in the_scale.scenarios:
        pick("scenario", name, scenarios())
    chosen = suite_presets(suite, preset_names)
    for scene in [*scenes, *(scene for preset in chosen for scene in preset.scenes)]:
        if scene not in suite.scenes:
            raise HashPoseError(f"The suite '{suite.name}' has no scene '{scene}'{nearest(scene, suite.scenes)}")
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
        ours: Settings = {
            DATAPARSER: scenario.dataparser,
            "pipeline.datamanager.data": shlex.quote(str(folders[scene])),
            "machine.seed": str(seed),
            "pipeline.datamanager.perturbation.seed": str(seed),
            **read_flags(UNATTENDED),
        }
        place = suite.scenes[scene]
        layers = {
            "The runner": lambda: ours,
            f"The scenario '{scenario.name}'": lambda: scenario.of(preset),
            f"The scale '{the_scale.name}'": lambda: the_scale.of(preset),
            where: lambda: special.of(preset),
            f"The suite '{suite.name}'": lambda: suite.of(preset),
            f"The scene '{scene}'": lambda: read_flags(place.get("flags", "") if isinstance(place, dict) else ""),
            f"The preset '{preset.name}'": lambda: read_flags(preset.flags),
            "--set": lambda: overrides or {},
        }
        read: Dict[str, Settings] = {}
        for source, flags in layers.items():
            try:
                read[source] = flags()
            except HashPoseError as error:
                raise HashPoseError(f"{source}: {error}") from None
        return Run(suite=suite, scale=the_scale, scenario=scenario, scene=scene, preset=preset, seed=seed, layers=read)

    all_seeds = seeds or (range(suite.seeds) if isinstance(suite.seeds, int) else suite.seeds)
    return [
        run(scene, preset, seed)
        for seed in all_seeds
        for scene in folders
        for preset in chosen
        if not preset.scenes or scene in preset.scenes
    ]
