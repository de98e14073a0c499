"""Scenes and recipes with one thing wrong: `python tests/fuzz.py COUNT [SEED] [run]` lists every
error that is not one line of a ValueError which names the key; with `run` small scenes that --check
calls sound are simulated and written too. test_fuzz.py runs a small sample."""

import copy
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import mrcfile
import numpy as np
import yaml

from tem_taichi.cli.run import prepare, run
from tem_taichi.recipes.load import find_recipe, read_recipe, recipe_names
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.settings import ParticleSettings, Scene
from tem_taichi.scene.typed import hints_of

SCENE = {
    "defaults": ["simulate", {"override specimen": "empty"}, "_self_"],
    "shape": [32, 32], "pixel_size": 4.0, "output": "out",
    "optics": {"defocus": 3000.0},
    "specimen": {"ice": {"thickness": 200.0}, "size": [300.0, 300.0], "particles": {
        "ball": {"globule": 5.0, "count": 2},
        "bead": {"fiducial": 20.0, "placement": "listed", "positions": [[0, 0, 0]],
                 "orientations": [[0, 0, 0]]},
        "bag": {"vesicle": 150.0}, "sheet": {"membrane": [100.0, 100.0]},
        "row": {"globule": 5.0, "placement": "helix", "rise": 30.0, "twist": 20.0, "length": 90.0},
        "grid": {"globule": 5.0, "placement": "lattice", "copies": [2, 1, 1]}}},
    "tilts": {"scheme": "listed", "angles": [0, 30], "doses": [1, 2], "shifts": [[0, 0], [1, 1]],
              "defocus_offsets": [0, 1]},
    "stack": {"box": 16},
}

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-30, -1e-30, 1e30, -1e30, 1e300, 10**400, 2**63,
    2**31, 1e6, 1e9, -1e9, float("nan"), float("inf"), float("-inf"), "", " ", "x", "null", "1",
    "1e3", "${seed}", "${oc.env:HOME}", "???", "../x", "a/b", "\n", "\x7f", "é" * 300, "/dev/null",
    ".", [], [[]], [None], ["x"], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1e30, 1e30], [-1, -1],
    [[1, 2, 3]], [[1, 2], [3]], [[[1]]], [float("nan")] * 2, [1e30] * 3, {}, {"x": 1},
    {"x": {"y": [1]}}, {1: 2}, list(range(1000)), "1" * 5000]


def keys(kind: type, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a dataclass; a mapping of particles stands for the ball's keys."""
    for name, hint in hints_of(kind).items():
        yield (*at, name)
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, (*at, name))
        elif ParticleSettings in get_args(hint):
            for particle in SCENE["specimen"]["particles"]:
                yield from keys(ParticleSettings, (*at, name, particle))


def put(content: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    """Set a key, whatever is or is not above it."""
    for name in key[:-1]:
        content = content.setdefault(name, {})
    content[key[-1]] = value


def mutated(value: Any, chance: random.Random) -> Any:
    """Another value: any of VALUES, or a part of this one changed."""
    if isinstance(value, list) and value and chance.random() < 0.5:
        value = copy.deepcopy(value)
        place = chance.randrange(len(value))
        return chance.choice([value[:-1], [*value, value[-1]],
                              [*value[:place], mutated(value[place], chance), *value[place + 1:]]])
    if isinstance(value, int | float) and not isinstance(value, bool) and chance.random() < 0.3:
        return value * chance.choice([-1, 1e-6, 1e-3, 0.5, 1.5, 10.0, 1e3, 1e6])
    return chance.choice(VALUES)


def said_of(work: Any, names: list[str]) -> str | None:
    """What is wrong with an error, or None; a sound result is none."""
    try:
        work()
    except (ValueError, OSError) as error:
        text = str(error)
        if "\n" in text or len(text) > 600 or not text.strip():
            return f"not one short line: {text[:300]!r}"
        return None if any(map(text.__contains__, names)) else f"does not name {names}: {text}"
    except BaseException:
        return traceback.format_exc(limit=-3)
    return None


def checked(scene: Scene, compute: bool) -> None:
    """What --check does and, of a small scene, a run."""
    planned, specimen = prepare(scene)
    if compute and planned.memory < 1e9 and len(planned.tilts) <= 3 and specimen.n_scatterers < 1e5:
        out = Path(tempfile.mkdtemp()) / "out"
        run(dataclasses.replace(scene, output=str(out)))
        with mrcfile.open(out / f"{scene.name}_noise_free.mrc") as stack:
            if not (np.isfinite(stack.data).all() and stack.data.min() >= 0):
                raise RuntimeError("images are not finite or negative")
        shutil.rmtree(out.parent)


def scene_case(chance: random.Random, folder: Path, compute: bool) -> tuple[str, str | None]:
    """A scene with one thing changed."""
    content, every = copy.deepcopy(SCENE), list(keys(Scene))
    key = chance.choice(every)
    here: Any = content
    for name in key:
        here = here.get(name) if isinstance(here, dict) else None
    value = mutated(here, chance)
    if chance.random() < 0.1:  # a key that nobody knows
        key = (*key[:-1], chance.choice(["nope", "", "a b", "x" * 300, "ü"]))
    put(content, key, value)
    file, words = folder / "scene.yaml", []
    if chance.random() < 0.3:  # on the command line, where {} empties and no name may be odd
        content, words = SCENE, [f"{'.'.join(key)}={json.dumps(value)}"]
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    case = f"{'.'.join(key)[:99]} = {str(value)[:80]!r}{' as an override' if words else ''}"
    names = [key[-1][:50]]
    if len(key) > 3 and key[0] == "specimen":
        names.append(".".join(key[:3]))  # the particle, whose size follows from several keys
    if key[0] == "tilts":
        names.append("tilts.")  # lists of which each has one entry for each tilt
    return case, said_of(lambda: checked(load_scene(file, words), compute), names)


def recipe_case(chance: random.Random, folder: Path, _: bool) -> tuple[str, str | None]:
    """A recipe with one setting changed, in a file or on the command line."""
    name = chance.choice(list(recipe_names()))
    kind = find_recipe(name).RECIPE[0]
    key = chance.choice(list(get_type_hints(kind)))
    value = mutated(getattr(kind(input=["a.mrc"]), key), chance)
    if chance.random() < 0.1:
        key = chance.choice(["nope", "a b", "ü"])
    case = f"recipe={name} {key} = {str(value)[:80]!r}"
    if chance.random() < 0.5 and isinstance(value, int | float | list):
        words = [f"recipe={name}", "input=a.mrc", f"{key}={value}"]
    else:
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump({"recipe": name, "input": "a.mrc", key: value},
                                       allow_unicode=True), encoding="utf-8")
        words = [f"recipe={file}"]
    return case, said_of(lambda: read_recipe(words), [key])


def cases(count: int, seed: int, compute: bool = False) -> Iterator[tuple[str, str]]:
    """What went wrong, of `count` cases, a quarter of them recipes."""
    with tempfile.TemporaryDirectory() as folder:
        for n in range(count):
            chance = random.Random(f"{seed} {n}")
            kind = recipe_case if n % 4 == 3 else scene_case
            case, wrong = kind(chance, Path(folder), compute)
            if wrong:
                yield f"{n}: {case}", wrong


if __name__ == "__main__":
    number, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failures = 0
    for done in range(0, number, 100):
        for case, wrong in cases(min(100, number - done), start + done, "run" in sys.argv):
            failures += 1
            print(case, wrong, sep="\n    ")
        print(f"{failures} of {min(done + 100, number)}", flush=True)
