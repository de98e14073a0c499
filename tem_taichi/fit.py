"""Estimate the detector, the microscope and the specimen from images.

usage: python -m tem_taichi.fit recipe=NAME input=FILE [KEY=VALUE ...] [options]

  recipe=NAME           one of the recipes below
  recipe=mine.yaml      settings of your own; the file names its base as `recipe: ctf`
  recipe=mine.py        a recipe of your own, a Python file: see docs/recipes.md
  input=[a.mrc,b.mrc]   one file or a list: MRC (also .st, .mrcs, .gz) or TIFF
  output=FOLDER         where the results go; overwrite=true replaces earlier ones

options:
  --show        print the recipe with every setting, its unit and meaning
  --version     print the version
  --help        print this

Results appear whole or not at all: results.json with errors and what was assumed, figures, RELION
star files, and configurations that `python -m tem_taichi.simulate` uses. Until a run of recipe=ctf
or denoise is done, its finished fits are kept in the hidden folder .FOLDER.unfinished beside the
output, for the same run to go on with. Wrong input ends with one line and exit status 2.

recipes:
"""

import sys
from collections.abc import Sequence

from tem_taichi.cli.program import Program, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for wrong input."""
    return run_program(Program(_help, frozenset({"--show"}), _work, "no output is written; run the "
                               "same again to go on with what is done"), arguments)


def _help() -> str:
    from tem_taichi.recipes.load import recipe_names

    return str(__doc__) + "".join(f"  {name:12}{about}\n"
                                  for name, about in recipe_names().items())


def _work(words: list[str], options: set[str]) -> None:
    if not words and not options:
        print(_help(), end="")
        return
    from tem_taichi.cli.recipes import do_recipe, show_recipe

    (show_recipe if "--show" in options else do_recipe)(words)


if __name__ == "__main__":
    sys.exit(main())
