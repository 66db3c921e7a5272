"""What is importable from the top: all of it, documented, in the stub, and nothing loaded before it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hashpose_ns


def test_every_public_name_is_there_and_documented():
    for name in hashpose_ns.__all__:
        found = getattr(hashpose_ns, name)
        assert found.__doc__ and found.__module__.startswith("hashpose_ns."), name
    assert set(hashpose_ns.__all__) <= set(dir(hashpose_ns))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hashpose_ns.nothing


def test_type_checkers_see_the_same_names_in_the_same_places():
    folder = Path(hashpose_ns.__file__).parent
    stub = ast.parse((folder / "__init__.pyi").read_text())
    seen = {node.names[0].name: node.module for node in stub.body if isinstance(node, ast.ImportFrom)}
    assert seen == {name: f"hashpose_ns.{home}" for name, home in hashpose_ns._HOMES.items()}
    assert sorted(seen) == hashpose_ns.__all__ and (folder / "py.typed").is_file()


def test_the_package_is_light_to_import():
    code = "import sys, hashpose_ns; print({'torch', 'numpy', 'nerfstudio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
