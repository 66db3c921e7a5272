"""What the YAML files in `data/` hold, suites, scenarios, scales and presets, and how they are read.

Nothing heavy is imported here: `hashpose-bench list` answers at once.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Literal, Mapping, Optional, Type, TypeVar, Union, get_type_hints

import yaml

from hashpose_ns.bench.settings import coerce, nearest
from hashpose_ns.errors import HashPoseError, one_line

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of scenes, presets and suites become folders."""

WORDS = ("title", "description", "paper", "deviations")
"""What an entry that is like another doesn't take over."""

Family = Literal["hash", "mlp", "nerfacto"]
Settings = Dict[str, Any]
EntryT = TypeVar("EntryT", bound="Entry")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What suites, scenarios, scales and presets have in common."""

    name: str
    """Its name in the file, or the file's."""
    description: str = ""
    """What it is, in a sentence or two."""
    settings: Settings = field(default_factory=dict)
    """Dotted path -> value."""


@dataclass(frozen=True, kw_only=True)
class Layer(Entry):
    """Settings of which some are for one family of methods, or one method, only."""

    families: Dict[Family, Settings] = field(default_factory=dict)
    """Settings of the methods of a family, on top of the others."""
    methods: Dict[str, Settings] = field(default_factory=dict)
    """Settings of what is built on one method (a preset's `base`), on top of its family's."""

    def of(self, preset: "Preset") -> Settings:
        """The settings for a preset."""
        return {**self.settings, **self.families.get(preset.family, {}), **self.methods.get(preset.base, {})}


@dataclass(frozen=True, kw_only=True)
class Preset(Entry):
    """A method with the settings that make it what it is."""

    base: str
    """The method it is built on: `hashpose`, this package's for the scenario's protocol; another of its methods; or a
    peer."""
    family: Family
    """Which rates and sizes of scales and scenarios are meant for it."""
    title: str = ""
    """Name in tables; the preset's name where there is none."""
    paper: str = ""
    """The table or row of the paper it stands for."""
    deviations: str = ""
    """Where it differs from what it stands for."""


@dataclass(frozen=True, kw_only=True)
class Scenario(Layer):
    """Where the images come from, and what is known of the poses at the start."""

    protocol: Literal["blender", "llff", "captures"]
    """Whose settings of data, rays, initial poses and evaluation the base methods have: those of `hashpose-blender`,
    `hashpose-llff` or `hashpose`."""
    dataparser: str
    """nerfstudio's name for it, such as blender-data."""
    image_height: Optional[int] = None
    """Height in pixels that a scale's resolution is a fraction of; None takes the images as they are."""


@dataclass(frozen=True, kw_only=True)
class Scale(Layer):
    """How long and how large: image size, steps, rays, samples, networks, and rates that suit the length."""

    resolution: float = 1.0
    """Fraction of the scenario's image height. Images are never enlarged."""
    scenarios: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """More `settings`, `families` and `methods` for some scenarios, by their names."""


@dataclass(frozen=True, kw_only=True)
class Suite(Layer):
    """What is compared on what."""

    scenario: str
    """The scenario's name."""
    scale: str
    """Name of the scale it is meant for; `--scale` takes another."""
    scenes: Dict[str, Union[str, List[str]]]
    """Name -> folder, or several of which the first that exists is taken. `{data}` stands for `--data`, and `demo` for
    the packaged scene."""
    presets: List[Union[str, Dict[str, Any]]]
    """Names of presets, or presets of its own, written as in presets.yaml with their `name`."""
    seeds: Union[int, List[int]] = 1
    """Seeds, or their number."""


# -- reading -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with the numbers and truth values of its current version: 1e-3 is a number, and `off` a word. A key that is
    there twice, of which YAML's own loader takes the last, is an error."""

    def construct_mapping(self, node, deep=False):
        """Builds a dictionary."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Reads YAML, plain data only."""
    return yaml.load(text, Loader=_Loader)


def read_file(path: Path) -> Dict[str, Any]:
    """Reads a YAML file that maps names to something.

    Raises:
        HashPoseError: it cannot be read, or holds something else.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
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
    check_name(str(name), where)
    if not isinstance(content, dict):
        raise HashPoseError(f"{where} must hold names with values, not {content!r}.")
    known = {entry.name: entry for entry in fields(cls) if entry.name != "name"}
    for key in content:
        if key not in known:
            raise HashPoseError(f"{where} has an unknown field '{key}'{nearest(str(key), known)}")
    for key, entry in known.items():
        if key not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise HashPoseError(f"{where} lacks the field '{key}'.")
    hints, values = get_type_hints(cls), {}
    for key, value in content.items():
        try:
            values[key] = coerce(value, hints[key])
        except ValueError as error:
            raise HashPoseError(f"{where}: '{key}' {error}.") from None
    return cls(name=str(name), **values)


def inherited(content: Any, others: Mapping[str, Any], where: str) -> Any:
    """An entry's content with what it takes over from the one it is `like`: all but its words."""
    if not isinstance(content, dict) or "like" not in content:
        return content
    own = dict(content)
    model = own.pop("like")
    if model not in others:
        raise HashPoseError(f"{where} is like '{model}', which does not exist{nearest(str(model), others)}")
    parent = inherited(others[model], others, f"The entry '{model}'")
    merged = {key: value for key, value in parent.items() if key not in WORDS} | own
    for key in ("settings", "families", "methods"):
        if isinstance(own.get(key), dict) and key in parent:
            merged[key] = _deep_merge(parent[key], own[key])
    return merged


def _deep_merge(below: Dict, above: Dict) -> Dict:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _deep_merge(below[key], above[key])
    return merged


def read_all(cls: Type[EntryT], path: Path) -> Dict[str, EntryT]:
    content, kind = read_file(path), cls.__name__.lower()
    return {
        name: read_entry(cls, name, inherited(entry, content, f"The {kind} '{name}'"), f"The {kind} '{name}'")
        for name, entry in content.items()
    }
