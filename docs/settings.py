"""The commands and settings of this package, read from its dataclasses: for the reference pages and for the tests.

python docs/settings.py     # writes both pages to standard output
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

METHODS = {
    "hashpose": "hashpose",
    "hashpose-small": "small",
    "hashpose-object": "object_",
    "hashpose-object-fine": "object_fine",
    "hashpose-blender": "blender",
    "hashpose-llff": "llff",
}
"""Methods and their names in methods.py."""


@dataclass
class Setting:
    """One flag of a command."""

    flag: str
    values: str
    """What it takes, in words."""
    default: str
    """As one writes it in Python; `required` if there is none."""
    doc: str
    """Its docstring."""
    owner: type
    """The dataclass that has the field."""


def commands() -> Dict[str, type]:
    """Command with its subcommand -> the dataclass of its flags."""
    from hashpose_ns import demo, match
    from hashpose_ns.bench import cli as bench
    from hashpose_ns.export import cli as export
    from hashpose_ns.guard import cli as guard
    from hashpose_ns.localize import cli as localize
    from hashpose_ns.sparse_command import cli as sparse

    found: Dict[str, type] = {
        "hashpose-demo": demo.Demo,
        "hashpose-match": match.Match,
        "hashpose-guard": guard.Guard,
        "hashpose-localize": localize.Localize,
    }
    unions = {"hashpose-export": export.Commands, "hashpose-sparse": sparse.Commands, "hashpose-bench": bench.Commands}
    for name, union in unions.items():
        for member in typing.get_args(_bare(union)):
            config = typing.get_args(member)[1]
            found[f"{name} {config.name}"] = _bare(member)
    return found


def methods() -> Dict[str, Any]:
    """Method -> its whole configuration."""
    from hashpose_ns import methods as registered

    return {method: getattr(registered, name).config for method, name in METHODS.items()}


@functools.lru_cache(None)
def attribute_docs(cls: type) -> Dict[str, str]:
    """The docstrings below a class's own fields."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # built-in classes
        return {}
    body = tree.body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(body, body[1:])
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """All flags of a dataclass or of an instance of one, nested ones included; of this package's classes only."""
    cls = config if isinstance(config, type) else type(config)
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if field.name.startswith("_") or "Suppress" in repr(hints[field.name]):
            continue
        value = _value(field) if isinstance(config, type) else getattr(config, field.name)
        nested = value if dataclasses.is_dataclass(value) else None
        if value is dataclasses.MISSING and dataclasses.is_dataclass(_bare(hints[field.name])):
            nested = _bare(hints[field.name])
        if isinstance(value, dict):  # optimizers: a name -> optimizer and scheduler
            for name, parts in value.items():
                for part, nested_config in parts.items() if isinstance(parts, dict) else ():
                    if dataclasses.is_dataclass(nested_config):
                        yield from settings(nested_config, f"{prefix}{field.name}.{name}.{part}.")
            continue
        if nested is not None:
            flat = "OmitArgPrefixes" in repr(hints[field.name])
            yield from settings(nested, prefix if flat else f"{prefix}{field.name}.")
        owner = next((c for c in cls.__mro__ if field.name in c.__dict__.get("__annotations__", {})), cls)
        documented = next((c for c in cls.__mro__ if field.name in attribute_docs(c)), owner)
        if nested is None and documented.__module__.startswith("hashpose_ns"):
            yield Setting(
                "--" + (prefix + _name(hints[field.name], field.name)).replace("_", "-"),
                _values(hints[field.name]),
                "required" if value is dataclasses.MISSING else _written(value),
                attribute_docs(documented).get(field.name, ""),
                documented,
            )


def _value(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _name(hint: Any, field: str) -> str:
    """What a flag is called: as its field, if `tyro.conf.arg` says nothing else."""
    names = (getattr(extra, "name", None) for extra in getattr(hint, "__metadata__", ()))
    return next((name for name in names if isinstance(name, str)), field)


def _bare(hint: Any) -> Any:
    """A type without what `Annotated` adds."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    return hint


def _values(hint: Any) -> str:
    hint = _bare(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(map(str, args))
    if origin is typing.Union:
        return " or ".join(_values(arg) for arg in args if arg is not type(None))
    if origin in (tuple, list):
        return f"{_values(args[0])} ..." if len(args) == 1 or args[1] is ... else ", ".join(map(_values, args))
    if hint is bool:
        return "True, False"
    return {"Path": "path", "str": "text", "int": "integer", "float": "number"}.get(
        getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint))
    )


def _written(value: Any) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (tuple, list)):
        return " ".join(map(_written, value)) or "empty"
    if value == "":
        return "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- pages -------------------------------------------------------------------------------------------------------------


def _table(rows: List[Tuple[Setting, str]]) -> List[str]:
    lines = ["| flag | values | default | |", "|---|---|---|---|"]
    for setting, default in rows:
        doc = setting.doc.replace("|", "\\|").replace("\n- ", "<br>• ").replace("\n", "<br>")
        values = setting.values.replace("|", "\\|")
        lines.append(f"| `{setting.flag}` | {values} | {default} | {doc} |")
    return [*lines, ""]


def _summary(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def commands_page() -> str:
    """Every hashpose-* command and its flags, as Markdown."""
    lines = ["# Commands", "", "Generated from the source; `COMMAND --help` prints the same.", ""]
    for name, cls in commands().items():
        lines += [f"## {name}", "", _summary(cls), ""]
        lines += _table([(setting, f"`{setting.default}`") for setting in settings(cls)])
    return "\n".join(lines)


def settings_page() -> str:
    """The settings of the methods that are this package's own, as Markdown."""
    lines = [
        "# Settings of the methods",
        "",
        "Flags of `ns-train METHOD` that this package adds, generated from the source. "
        "nerfstudio's own are in `ns-train METHOD --help`. If methods differ, the default names each that does.",
        "",
    ]
    found: Dict[str, Dict[str, Setting]] = {}
    for method, config in methods().items():
        for setting in settings(config):
            found.setdefault(setting.flag, {})[method] = setting
    groups: Dict[type, List[Tuple[Setting, str]]] = {}
    for by_method in found.values():
        first = next(iter(by_method.values()))
        others = [f"{m}: `{s.default}`" for m, s in by_method.items() if s.default != first.default]
        groups.setdefault(first.owner, []).append((first, "<br>".join([f"`{first.default}`", *others])))
    for owner, rows in groups.items():
        lines += [f"## {owner.__name__}", "", _summary(owner), "", *_table(rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(commands_page())
    print(settings_page())
