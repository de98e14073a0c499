"""Make a labelled data set: many simulated tilt series with their truth, and projects of them all.

usage: python -m tem_taichi.dataset [SET.yaml] [KEY=VALUE ...] [options]

A data set is a template, a scene of `python -m tem_taichi.simulate`, and what varies of it:

  scene: my_scene.yaml
  samples: 100
  output: my_set
  vary:
    optics.defocus: {uniform: [25000, 45000]}
    dose: {log_uniform: [1, 4]}
    specimen.ice.thickness: {normal: [1500, 200]}
    specimen.particles.ferritin.count: {integer: [5, 40]}
    detector: {choice: [k3_300kv, falcon4ec_300kv]}

  samples=100           how many; a larger number adds to those that are there
  only=[3,17]           make these alone
  workers=4             processes side by side; launcher=ray, submitit_slurm: on other machines
  output=FOLDER         where the data set goes
  twin.input=TS_01.mrc  in the place of a scene: a twin of this real series is the template, made by
                        recipe=twin of `python -m tem_taichi.fit` with its settings after twin.

options:
  --check       read and check everything, say how much time, memory and disk it takes
  --show        print every setting with its meaning
  --version     print the version
  --help        print this

The folder holds samples/, each as simulate writes it; shrec/, copick/ and relion5/, projects of all
of them; samples.csv, what varied; split.csv, training and validation; checksums/, for sha256sum
--check; and index.html, a page to look at. The same command goes on where it was interrupted, keeps
what is whole, and makes anew what is not. A sample is the same whenever and wherever it is made.
Wrong input ends with one line and exit status 2.
"""

import sys
from collections.abc import Sequence

from tem_taichi.cli.program import Program, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for wrong input."""
    return run_program(Program(
        lambda: str(__doc__), frozenset({"--check", "--show"}), _work,
        "finished samples and images are kept, the same command goes on from there"), arguments)


def _work(words: list[str], options: set[str]) -> None:
    if not words and not options:
        print(str(__doc__), end="")
        return
    from tem_taichi.cli.dataset import do_dataset

    do_dataset(words, options)


if __name__ == "__main__":
    sys.exit(main())
