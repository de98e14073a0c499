"""The template of a data set made from a real series on the way, by recipe=twin."""

import json
from collections.abc import Sequence
from pathlib import Path

from tem_taichi.checks import shown
from tem_taichi.cli.recipes import do_recipe
from tem_taichi.files.manifest import METADATA
from tem_taichi.recipes.load import read_recipe
from tem_taichi.scene.dataset import load_dataset
from tem_taichi.scene.typed import to_plain

_KEY = "twin."
_OWN = ("overwrite",)


def with_twin(file: str | None, words: Sequence[str], make: bool) -> list[str]:
    """Overrides of a data set in which a twin of a real series is the template.

    Words such as twin.input=TS_01.mrc are settings of recipe=twin, whose results are beside the
    data set, in a folder of its name with _twin behind; what is there of the same settings is kept.

    Args:
        file: of the data set's settings; None = none.
        words: overrides.
        make: whether to make the twin where there is none.

    Raises:
        ValueError: as the recipe; if a scene is given as well, or there is another twin.
    """
    mine = [word for word in words if word.startswith(_KEY)]
    others = [word for word in words if not word.startswith(_KEY)]
    if not mine:
        return others
    plain = load_dataset(file, others)
    if plain.scene is not None:
        raise ValueError(f"scene={plain.scene}: must be null where {mine[0]} makes one")
    folder = plain.folder.with_name(f"{plain.folder.name}_twin")
    recipe = ["recipe=twin", *(word.removeprefix(_KEY) for word in mine),
              f"output={json.dumps(str(folder))}"]
    scene = folder / "twin.yaml"
    if scene.is_file():
        _check_same(folder, recipe)
    elif make:
        do_recipe(recipe)
    else:
        raise ValueError(f"{mine[0]}: its twin is not there yet; run without options, or "
                         "python -m tem_taichi.fit recipe=twin first")
    return [*others, f"scene={json.dumps(str(scene))}"]


def _check_same(folder: Path, recipe: list[str]) -> None:
    """ValueError unless a twin was made by the same settings."""
    now = json.loads(json.dumps(to_plain(read_recipe(recipe)[1])))
    before = json.loads((folder / METADATA).read_text(encoding="utf-8"))["settings"]
    for key, value in now.items():
        if key not in _OWN and before.get(key) != value:
            raise ValueError(f"twin.{key}={shown(value)}: {folder} has a twin by "
                             f"{shown(before.get(key))}; remove it, or choose another output")
