"""`python -m tem_taichi.fit recipe=NAME input=FILE [KEY=VALUE ...]`: inverse problems."""

import sys
from collections.abc import Collection, Sequence

from tem_taichi.cli.command import expand_home, guarded

_SHOWN = 20
"""Fits of which a line is printed."""

HELP = """\
Estimate the detector and the microscope from images.

usage: python -m tem_taichi.fit recipe=NAME input=FILE [KEY=VALUE ...] [options]

  recipe=detector    noise spectrum, and the MTF as far as the assumptions go, from flat crops,
                     micrographs (pick=true), or an edge (method=edge)
  recipe=ctf         defocus, astigmatism, phase shift of micrographs, stacks, tilt series, spectra
  recipe=thickness   thickness over mean free path of a tilt series
  recipe=twin        a scene that simulates a labelled series like a real one
  recipe=mine.yaml   settings of your own; the file names its base as `recipe: ctf`

  input=[a.mrc,b.mrc]   one file or a list: MRC (also .st, .mrcs, .gz) or TIFF
  output=FOLDER         where the results go; overwrite=true replaces earlier ones
  --show                print the recipe with its settings; recipe=NAME --show alone says what
                        each of them means
  --help                print this

Results appear whole or not at all: results.json with errors and what was assumed, figures, RELION
star files, and configurations that `python -m tem_taichi.simulate` uses. Until a run of recipe=ctf
is done, its finished fits (JSON and PNG) are kept in the hidden folder .FOLDER.unfinished beside
the output, for the same run to go on with. Wrong input ends with one line and exit status 2.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for wrong input."""
    words = [expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    return guarded(lambda: _main(words), "no output is written; run the same again to go on with "
                   "the CTF fits that are done")


def _main(words: list[str]) -> None:
    options = {word for word in words if word.startswith("-")}
    if options - {"--help", "-h", "--show"}:
        raise ValueError(f"{min(options - {'--help', '-h', '--show'})}: no such option; see --help")
    if options & {"--help", "-h"} or not words:
        print(HELP, end="")
    elif "--show" in options:
        _show([word for word in words if word not in options])
    else:
        _run(words)


def _show(words: Sequence[str]) -> None:
    from dataclasses import asdict

    import yaml

    from tem_taichi.recipes.settings import RECIPES, read_recipe
    from tem_taichi.scene.load import CONFIG_FOLDER

    name = next((word.partition("=")[2] for word in words if word.startswith("recipe=")), "")
    if len(words) == 1 and name in RECIPES:
        print((CONFIG_FOLDER / "recipe" / f"{name}.yaml").read_text(encoding="utf-8"), end="")
        return
    recipe = read_recipe(words)
    kind = next(name for name, kind in RECIPES.items() if kind is type(recipe))
    print(yaml.safe_dump({"recipe": kind, **asdict(recipe)}, sort_keys=False), end="")


def _run(words: Sequence[str]) -> None:
    from dataclasses import asdict

    import torch

    from tem_taichi.cli.progress import progress
    from tem_taichi.files.folder import check_new_folder, new_folder, said_of_output
    from tem_taichi.files.io import write_json
    from tem_taichi.files.manifest import METADATA, PROGRAM
    from tem_taichi.files.unfinished import remove_parts, unfinished_folder
    from tem_taichi.files.workplace import clear_leftovers
    from tem_taichi.recipes.input import files_of
    from tem_taichi.recipes.runs import RUNS
    from tem_taichi.recipes.settings import RECIPES, read_recipe
    from tem_taichi.versions import versions
    from tem_taichi.waiting import waiting

    recipe = read_recipe(words)
    name = next(name for name, kind in RECIPES.items() if kind is type(recipe))
    command, inputs = f"fit recipe={name}", files_of(recipe, words)
    with said_of_output(recipe.output):
        clear_leftovers(recipe.output)
        check_new_folder(recipe.output, command, recipe.overwrite, inputs)
    with new_folder(recipe.output, command, recipe.overwrite, inputs) as folder:
        with progress(f"fitting {name}") as report:
            try:
                result = RUNS[type(recipe)](recipe, folder, report)
            except ValueError as error:
                raise ValueError(_with_key(str(error), vars(recipe))) from error
        write_json(folder / "results.json", result)
        write_json(folder / METADATA, {"program": PROGRAM, "recipe": name, "versions": versions(),
                                       "threads": {"torch": torch.get_num_threads(), **waiting()},
                                       "settings": asdict(recipe)})
        files = sorted(file.name for file in folder.iterdir())
    remove_parts(unfinished_folder(recipe.output))
    for line in _summary(result):
        print(line)
    print(f"wrote {recipe.output}/: " + ", ".join(files))


def _with_key(message: str, keys: Collection[str]) -> str:
    """A message that begins with a key of the recipe: what no other is to blame for is input."""
    return message if message.partition("=")[0].partition(":")[0] in keys else f"input: {message}"


def _summary(result: dict) -> list[str]:
    """What a person wants to see at once: numbers, and every doubt."""
    lines = []
    fits = result.get("fits", [])
    for fit in fits[:_SHOWN]:
        if "failed" in fit:
            lines.append(f"{fit['name']}: FAILED: {fit['failed']}")
            continue
        doubt = "" if fit["reliable"] else f"  UNRELIABLE: {'; '.join(fit['doubts'])}"
        rings = f"rings to {fit['resolution']:.1f} A" if fit["resolution"] else "no rings"
        lines.append(f"{fit['name']}: defocus {fit['defocus_u']:.0f} {fit['defocus_v']:.0f} A at "
                     f"{fit['astigmatism_angle']:.1f} deg, {rings}{doubt}")
    if len(fits) > _SHOWN:
        lines.append(f"... and {len(fits) - _SHOWN} more; {sum(not f['reliable'] for f in fits)} "
                     f"of {len(fits)} are unreliable")
    for key, value in result.items():
        if isinstance(value, float | int) and not isinstance(value, bool):
            lines.append(f"{key}: {value:.5g}")
        elif key in ("assumptions", "warnings"):
            lines += [f"{key[:-1]}: {text}" for text in value]
    return lines


if __name__ == "__main__":
    sys.exit(main())
