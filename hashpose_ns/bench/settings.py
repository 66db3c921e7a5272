"""Settings by their dotted path, such as `pipeline.model.field.encoding.gradient`, checked against a config's types.

Nothing heavy is imported here: the commands that only read suites answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Literal, Union, get_args, get_origin, get_type_hints

from hashpose_ns.errors import HashPoseError


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: `; did you mean 'X'?` where one is close, else a full stop."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else "."


def normalised(key: str) -> str:
    """A dotted path with underscores, whether it was written as in Python or as a flag (`--a.b-c`)."""
    return key.removeprefix("--").replace("-", "_")


def coerce(value: Any, hint: Any) -> Any:
    """A value read from YAML, JSON or the command line, as what a type hint asks for.

    Lists become tuples, whole numbers become floats and strings become paths where those are asked for; nothing else
    changes its type.

    Raises:
        ValueError: the value is not of that type; the message says what is expected.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return coerce(value, option)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        inner = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(inner) == len(value):
            return tuple(coerce(item, option) for item, option in zip(value, inner))
    elif list in (origin, hint) and isinstance(value, (list, tuple)):
        return [coerce(item, arguments[0] if arguments else Any) for item in value]
    elif dict in (origin, hint) and isinstance(value, dict):
        keys, values = arguments or (Any, Any)
        return {coerce(key, keys): coerce(item, values) for key, item in value.items()}
    elif hint is type(None):
        if value is None:
            return value
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
    elif hint in (bool, int, str) and type(value) is hint:
        return value
    raise ValueError(f"expects {describe(hint)}, not {value!r}")


def describe(hint: Any) -> str:
    """A type hint in words."""
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", Path: "a path"}
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in names:
        return names[hint]
    if hint is type(None):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin in (list, tuple):
        inner = [describe(option) for option in arguments if option is not ...]
        return f"a list ({', '.join(inner)}{', ...' if origin is list or ... in arguments else ''})"
    if dict in (origin, hint):
        return "names with values"
    return getattr(hint, "__name__", str(hint))


def is_group(value: Any) -> bool:
    """Whether a config's entry holds settings, rather than being one."""
    return isinstance(value, dict) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def children(group: Any) -> Dict[str, Any]:
    """The entries of a group of settings."""
    if isinstance(group, dict):
        return group
    return {field.name: getattr(group, field.name) for field in dataclasses.fields(group) if field.name != "_target"}


def setting_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """All dotted paths of a config's settings."""
    for name, value in children(config).items():
        if is_group(value) and value:
            yield from setting_paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@lru_cache(maxsize=None)
def _hints(config_type: type) -> Dict[str, Any]:
    return get_type_hints(config_type)


def apply_setting(config: Any, key: str, value: Any) -> Any:
    """Sets one setting of a config, in place.

    Args:
        config: a config dataclass, with others and dictionaries of them inside.
        key: dotted path.
        value: new value, see `coerce`.

    Returns:
        The value as it was set.

    Raises:
        HashPoseError: there is no such setting, or the value is not of its type.
    """
    owner, (*path, leaf) = config, normalised(key).split(".")
    for name in path:
        owner = children(owner).get(name) if is_group(owner) else None
    entries = children(owner) if is_group(owner) else {}
    if leaf not in entries:
        raise HashPoseError(f"there is no setting '{key}'{nearest(normalised(key), setting_paths(config))}")
    if is_group(entries[leaf]) or isinstance(owner, dict):
        inside: List[str] = sorted(children(entries[leaf])) if is_group(entries[leaf]) else []
        raise HashPoseError(f"'{key}' is a group of settings, not one; it holds {', '.join(inside) or 'none'}")
    try:
        result = coerce(value, _hints(type(owner))[leaf])
    except ValueError as error:
        raise HashPoseError(f"'{key}' {error}.") from None
    setattr(owner, leaf, result)
    return result


def plain(value: Any) -> Any:
    """A setting's value as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
