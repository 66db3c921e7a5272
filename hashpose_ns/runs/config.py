"""Reading a run's config.yml as data. nerfstudio reads it with a loader that runs whatever the file names."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Iterator, Set, Type

import yaml

from hashpose_ns.errors import HashPoseError, one_line

PLUGINS = ("nerfstudio.method_configs", "nerfstudio.dataparser_configs")
"""Entry points of packages whose configurations may stand in the file beside nerfstudio's and hashpose's."""
PATHS = {f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath")}
COLLATE_FUNCTIONS = "nerfstudio.data.utils."
"""Where the only functions are that a configuration names."""
LAST = "vis"
"""The last of a configuration's entries, which nerfstudio writes in alphabetical order."""


def read_config(path: Path) -> Any:
    """The configuration in a run's config.yml, a nerfstudio `TrainerConfig`.

    What a configuration is made of is all that is read: numbers, words, lists, paths, enums, and the dataclasses and
    classes of nerfstudio, of hashpose and of installed plugins. Settings that the file lacks, as one of an earlier
    version does, have their defaults.

    Raises:
        HashPoseError: it cannot be read, is cut off, or holds something else.
    """
    try:
        # Not imported before: it imports the plugins, whose classes the file may name
        from nerfstudio.configs import method_configs  # noqa: F401
        from nerfstudio.engine.trainer import TrainerConfig

        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_ConfigLoader)
        if not isinstance(config, TrainerConfig):
            raise HashPoseError(f"it holds a {type(config).__name__}, not the settings of a run")
        if LAST not in vars(config):
            raise HashPoseError("it is cut off")
        _complete(config, "")
        return config
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
    except OSError as error:
        reason = error.strerror or one_line(error)
    except UnicodeDecodeError:
        reason = "it is no text"
    except Exception as error:  # of classes that are given what they do not expect
        reason = one_line(error)
    raise HashPoseError(f"The configuration {path} cannot be read: {reason}; get the file as training wrote it.")


def _packages() -> Set[str]:
    """Names of the packages that configurations come from."""
    named = [point.value for group in PLUGINS for point in entry_points(group=group)]
    for variable in ("NERFSTUDIO_METHOD_CONFIGS", "NERFSTUDIO_DATAPARSER_CONFIGS"):
        named += [definition.partition("=")[2] for definition in os.environ.get(variable, "").split(",")]
    return {"nerfstudio", "hashpose_ns", *(name.partition(":")[0].partition(".")[0] for name in named)} - {""}


class _ConfigLoader(yaml.SafeLoader):
    """YAML, and of Python's objects those that a configuration is made of."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.packages = _packages()

    def named(self, name: str) -> Any:
        """What a dotted name stands for.

        Raises:
            HashPoseError: it is in none of the packages, or is not there.
        """
        module, _, attribute = name.rpartition(".")
        if module.partition(".")[0] not in self.packages and not f"{module}.".startswith("torch.optim."):
            raise HashPoseError(f"{name} is not part of a configuration")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise HashPoseError(f"there is no {name} in the installed version") from error
        is_function = callable(found) and module.startswith(COLLATE_FUNCTIONS)
        if not isinstance(found, type) and not is_function:
            raise HashPoseError(f"{name} is not part of a configuration")
        return found

    def construct_name(self, name: str, node: yaml.Node) -> Any:
        """A class, or a function that collates images."""
        return self.named(name)

    def construct_dataclass(self, name: str, node: yaml.Node) -> Iterator[Any]:
        """An instance of a dataclass with the given fields."""
        found: Type = self.named(name)
        if not dataclasses.is_dataclass(found):
            raise HashPoseError(f"{name} is not part of a configuration")
        instance = found.__new__(found)
        yield instance
        state = self.construct_mapping(node, deep=True)
        restore = getattr(instance, "__setstate__", vars(instance).update)
        restore(state)

    def construct_call(self, name: str, node: yaml.Node) -> Any:
        """A path or a member of an enum."""
        arguments = self.construct_sequence(node, deep=True)
        if name in PATHS:
            return Path(*arguments)
        found = self.named(name)
        if not issubclass(found, enum.Enum):
            raise HashPoseError(f"{name} is not part of a configuration")
        return found(*arguments)

    def construct_python_tuple(self, node: yaml.Node) -> tuple:
        """A tuple."""
        return tuple(self.construct_sequence(node, deep=True))


_PYTHON = "tag:yaml.org,2002:python/"
_ConfigLoader.add_constructor(_PYTHON + "tuple", _ConfigLoader.construct_python_tuple)
_ConfigLoader.add_multi_constructor(_PYTHON + "name:", _ConfigLoader.construct_name)
_ConfigLoader.add_multi_constructor(_PYTHON + "object:", _ConfigLoader.construct_dataclass)
_ConfigLoader.add_multi_constructor(_PYTHON + "object/apply:", _ConfigLoader.construct_call)


def _complete(config: Any, where: str) -> None:
    """Gives a dataclass, and those in it, the fields that it lacks, and looks whether numbers are numbers.

    Args:
        where: the names that lead to it, with a dot behind.

    Raises:
        HashPoseError: a field has no default, or a value of the wrong kind.
    """
    for field in dataclasses.fields(config):
        name = where + field.name
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name not in vars(config):
            if default is dataclasses.MISSING:
                raise HashPoseError(f"it has no {name}")
            setattr(config, field.name, default)
        value = getattr(config, field.name)
        if value is not None and _is_number(default) and not _is_number(value):
            raise HashPoseError(f"its {name} is {value!r:.40}, which is not a number")
        if dataclasses.is_dataclass(default) and not isinstance(default, type) and not dataclasses.is_dataclass(value):
            raise HashPoseError(f"its {name} is {value!r:.40}, where settings belong")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _complete(value, name + ".")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))  # bool among them
