"""A recipe from the command line: printed, or run and its results written whole or not at all."""

from collections.abc import Collection, Sequence
from inspect import getdoc

import torch

from tem_taichi.cli.progress import progress
from tem_taichi.files.folder import check_new_folder, new_folder, said_of_output
from tem_taichi.files.io import write_json
from tem_taichi.files.manifest import METADATA, PROGRAM
from tem_taichi.files.unfinished import remove_parts, unfinished
from tem_taichi.files.workplace import clear_leftovers
from tem_taichi.recipes.input import files_of
from tem_taichi.recipes.load import defaults, find_recipe, name_of, read_recipe
from tem_taichi.recipes.result import Result, write_result
from tem_taichi.recipes.show import to_yaml
from tem_taichi.scene.typed import to_plain
from tem_taichi.versions import versions
from tem_taichi.waiting import waiting


def show_recipe(words: Sequence[str]) -> None:
    """Print a recipe's settings with their meaning; `recipe=NAME` alone needs no input."""
    name = words[0].partition("=")[2] if len(words) == 1 else ""
    if [*words] == [f"recipe={name}"] and not name.endswith((".yaml", ".yml")):
        module = find_recipe(name)
        values = defaults(module.RECIPE[0])
    else:
        module, recipe = read_recipe(words)
        values = to_plain(recipe)
    print(to_yaml(name_of(module), getdoc(module) or "", module.RECIPE[0], values), end="")


def do_recipe(words: Sequence[str]) -> None:
    """Run a recipe with a progress bar and write what it finds."""
    module, recipe = read_recipe(words)
    name = name_of(module)
    command, inputs = f"fit recipe={name}", files_of(recipe, words)
    with said_of_output(recipe.output):
        clear_leftovers(recipe.output)
        check_new_folder(recipe.output, command, recipe.overwrite, inputs)
    with unfinished(recipe.output) as parts:
        with progress(f"fitting {name}") as report:
            try:
                result = module.RECIPE[1](recipe, report)
            except ValueError as error:
                raise ValueError(_with_key(str(error), vars(recipe))) from error
        if not isinstance(result, Result):
            raise ValueError(f"recipe={name}: its function gave {type(result).__name__}, must "
                             "give a Result")
        with new_folder(recipe.output, command, recipe.overwrite, inputs) as folder:
            write_result(folder, result)
            write_json(folder / METADATA, {
                "program": PROGRAM, "recipe": name, "versions": versions(),
                "threads": {"torch": torch.get_num_threads(), **waiting()},
                "settings": to_plain(recipe)})
            files = sorted(file.name for file in folder.iterdir())
        remove_parts(parts)
    for line in result.lines():
        print(line)
    print(f"wrote {recipe.output}/: " + ", ".join(files))


def _with_key(message: str, keys: Collection[str]) -> str:
    """A message that begins with a key of the recipe: what no other is to blame for is input."""
    return message if message.partition("=")[0].partition(":")[0] in keys else f"input: {message}"
