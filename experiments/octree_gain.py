"""Why an octree's gain on images held out is small in "beads" of `experiments.bench`.

    python -m experiments.octree_gain FOLDER [--only octree]

The middle third of the rows of the series in FOLDER (made where it is not there): voxels of any
sign, positive ones, and an octree of a strength that was chosen before, whose images are predicted
from the whole tree and from the grid alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.tomography import CASES, EVERY, LENS, Case, gain, nothing
from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_fit import Settings
from tem_taichi.estimate.octree_fit import fitted as octree_fitted
from tem_taichi.estimate.octree_tree import Growth, on_tree, tree_of, volume_of
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_fit import exposures_of, fitted, model_of
from tem_taichi.estimate.tomogram_model import Model
from tem_taichi.inverse.measures import correlation

STRENGTH = 0.25
"""That images held out chose."""
FITS = ("voxels", "positive voxels", "octree")


def third(case: Case) -> Case:
    """The middle of the rows, along the tilt axis."""
    rows = case.truth.shape[1]
    part = slice(rows // 3, rows // 3 * 2)

    def cut(series: Series) -> Series:
        rays = series.rays
        n = len(range(rows)[part])
        return replace(series, images=series.images[:, part], weights=series.weights[:, part],
                       rays=replace(rays, shape=(n, rays.shape[1]),
                                    grid=(rays.grid[0], n, rays.grid[2])))

    return replace(case, shown=cut(case.shown), hidden=cut(case.hidden), truth=case.truth[:, part])


def told(case: Case, name: str, whole: Tensor, series: Series | None = None) -> None:
    """Gain by a volume on the grid of a series, and likeness to the truth."""
    exposures = exposures_of(case.hidden, case.hidden_tilts, LENS)
    seen = torch.stack(Model(series or case.hidden, exposures, LENS).images(whole))
    like = "" if series else (
        f", correlation {float(correlation(case.hidden.field(whole), case.truth)):.3f}")
    print(f"{name}: gain {gain(case, seen):.0f}{like}, in all {float(whole.sum()):.3g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=FITS)
    given = parser.parse_args()
    init("cpu", "float32")
    case = third(CASES["beads, not developed on"](given.folder))
    exposures = exposures_of(case.shown, case.shown_tilts, LENS)
    for name in FITS if given.only is None else (given.only,):
        if name != "octree":
            found = fitted(case.shown, exposures, LENS, 50, None, name == "positive voxels", EVERY,
                           nothing, Kept())
            told(case, name, found.whole)
            continue

        def imaging(of: Series, which: Sequence[int]) -> Model:
            return model_of(of, which, exposures, case.shown.rays.pixel, LENS)

        growth = Growth(9, 2, 8**8, 1, updates=1)
        finest = len(tree_of(case.shown, replace(growth, start=2)).leaves)
        field = octree_fitted(case.shown, imaging, Settings(
            replace(growth, leaves=int(0.6 * finest)), 50, every=EVERY, unit=5.0,
            strength=STRENGTH), nothing, Kept()).field
        told(case, "octree, whole tree", volume_of(field, field.tree.shape),
             on_tree(case.hidden, field.tree))
        told(case, "octree, grid alone", volume_of(field, case.shown.rays.grid))


if __name__ == "__main__":
    main()
