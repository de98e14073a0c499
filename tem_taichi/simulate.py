"""Simulate the micrographs that a transmission electron microscope records of a specimen.

usage: python -m tem_taichi.simulate [SCENE.yaml] [KEY=VALUE ...] [options]

Without a scene, an embedded example runs: apoferritin in ice, a short tilt series.

  optics.defocus=25000      set any value of the scene; a list is tilts.angles=[0,30]
  microscope=polara         choose another microscope, detector or specimen, see --list
  specimen.particles.mine.structure=mine.pdb
                            add a kind of particle, here a kind called "mine"
  ~specimen.particles.apoferritin
                            take one away
  output=FOLDER             where the results go; overwrite=true replaces earlier ones
  formats=[relion5,imod]    also write folders for other programs: relion5, warp, aretomo, imod,
                            shrec, copick, coordinates, tiff
  -m dose=1,2,3             sweep: one folder in the output for each combination of values, whose
                            number is also in the names of its files
  hydra/launcher=joblib     run what -m sweeps over side by side: joblib (hydra.launcher.n_jobs=4),
                            ray, submitit_local or submitit_slurm, Hydra's launchers, each an
                            extra: pip install 'tem_taichi[joblib]'; basic = one after the other
  force=true                run even what is foreseen to take more than a day

options:
  --check       read and check everything, say what would be computed and how much memory and
                time it takes, write nothing
  --show        print the whole scene, every key with its unit and meaning
  --list        list the shipped microscopes, detectors and specimens
  --version     print the version
  --help        print this

A scene is a YAML file. It begins with its defaults, then sets what it wants to be different:

  defaults: [simulate, override microscope: polara, override specimen: empty, _self_]
  pixel_size: 1.5
  specimen:
    particles:
      mine: {structure: mine.pdb, count: 5}

Leave out "override specimen: empty" to keep the example's apoferritins. A microscope or detector
of your own is a file microscope/NAME.yaml beside the scene. File names in a scene are relative to
the scene, or else to the working folder. A value may be that of another key, as ${optics.defocus};
nothing else can stand in ${}.

Lengths are in A, angles in degrees, voltage in kV, spherical aberration in mm; positive defocus
is underfocus. The output folder holds the tilt series with and without noise (MRC), tilt angles
(.rawtlt), .mdoc, the particles (RELION star), the truth of each tilt (CSV), the whole scene,
metadata and a preview. Wrong input ends with one line and exit status 2, and writes nothing.
A run or sweep that was interrupted goes on with the same command from what is finished.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tem_taichi.cli.program import Program, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for wrong input."""
    return run_program(Program(
        lambda: str(__doc__), frozenset({"--check", "--list", "--show", "-m", "--multirun"}),
        _work, "what was being computed is not written"), arguments)


def _work(words: list[str], options: set[str]) -> None:
    if "--list" in options:
        from tem_taichi.cli.shipped import print_shipped

        print_shipped()
    else:
        from tem_taichi.cli.scenes import do_scenes

        do_scenes(words, options)


class _Callable(ModuleType):
    """`tem_taichi.simulate` is also the function of that name, whose place a module takes."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from tem_taichi.series.simulate import simulate

        return simulate(*arguments, **keywords)


if __name__ == "__main__":
    sys.exit(main())
sys.modules[__name__].__class__ = _Callable
