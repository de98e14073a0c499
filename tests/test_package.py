import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import tem_taichi as tt

ROOT = Path(tt.__file__).parent


def test_public_names_are_what_they_say_whatever_is_imported():
    """A submodule of the same name must not take a function's place."""
    for file in ROOT.rglob("*.py"):
        importlib.import_module(".".join(("tem_taichi", *file.relative_to(ROOT).with_suffix(
            "").parts)).removesuffix(".__init__"))
    for name in tt.__all__:
        assert callable(getattr(tt, name)), name
    assert set(tt.__all__) <= set(dir(tt))


BELOW = {
    "files": {"ground"},
    "scene": {"ground", "files"},
    "specimen": {"ground", "files"},
    "noise": {"ground"},
    "instrument": {"ground", "specimen"},
    "experiment": {"ground", "specimen", "instrument", "noise"},
    "batches": {"ground", "specimen", "instrument", "noise"},
    "series": {"ground", "files", "scene", "specimen", "instrument", "noise", "experiment"},
    "export": {"ground", "files", "specimen", "series"},
    "inverse": {"ground", "specimen", "instrument", "noise", "experiment"},
    "estimate": {"ground", "files", "scene", "specimen", "instrument", "noise", "series",
                 "experiment", "inverse"},
    "recipes": {"ground", "files", "scene", "series", "inverse", "estimate"},
    "compat": {"ground", "specimen", "instrument", "noise"},
}
"""Rooms that each room may know beside itself; the programs at the top may know all."""
PROGRAMS = {"simulate", "fit", "dataset", "cli", "__init__"}


STAGES = {"splatting", "gridding", "filling", "ice", "passes", "draws", "rays", "slabs",
          "octree", "hash_grid"}
"""Modules that call kernels."""


def imports(file: Path) -> set[str]:
    """Modules that a file imports anywhere, `from package import module` as package.module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            if node.module.startswith("tem_taichi"):
                found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def room_of(module: str) -> str:
    first = module.split(".")[1] if "." in module else "__init__"
    return first if first in {*BELOW, "kernels", "conf", *PROGRAMS} else "ground"


def test_direction_of_dependencies():
    """Kernels know only Taichi; only the bridge, the device and stages know Taichi beside them;
    only the scene knows Hydra; every room knows only what stands below it."""
    kernels = Path(importlib.import_module("tem_taichi.kernels").__file__).parent
    for file in kernels.glob("*.py"):
        others = {name for name in imports(file) if not name.startswith("tem_taichi.kernels.")}
        assert others <= {"taichi", "collections.abc", "functools", "typing"}
    for file in ROOT.rglob("*.py"):
        names = imports(file)
        here = room_of(".".join(("tem_taichi", *file.relative_to(ROOT).with_suffix("").parts)))
        if "hydra" in {name.split(".")[0] for name in names}:
            assert here == "scene", file
        if any(name.startswith("tem_taichi.kernels") for name in names):
            assert file.stem in STAGES, file
        if here not in PROGRAMS:
            known = {room_of(name) for name in names if name.startswith("tem_taichi.")}
            allowed = BELOW.get(here, {"ground"}) | {here, "kernels", "conf"}
            assert known <= allowed, f"{file} knows {known - allowed}"


def test_things_of_many_parts_are_made_with_names():
    """More than six values in a row say nothing to the reader, and swap in silence."""
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) > 6:
                name = ast.unparse(node.func).rpartition(".")[2]
                assert not name[0].isupper(), f"{file}:{node.lineno} {name}"


def test_modules_that_have_moved_are_where_the_page_says():
    text = (ROOT.parent / "docs/moved.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    names = {name for row in rows for name in re.findall(r"`([a-z_]+\.?[a-z_0-9]*)`", row)}
    assert len(names) > 50
    assert [name for name in sorted(names) if find_spec(f"tem_taichi.{name}") is None] == []
