"""A simulated tilt series of a crowded specimen, and the truth: what methods are judged by.

    python -m experiments.cell_series FILE.npz [--specimen cell] [--seed 0] [--size 192] [--pixel 8]

200 nm of granular ice, 41 tilts from -60 to 60 degrees in dose-symmetric order, 120 e-/A^2 in all
with the damage that they do, 3 um under focus at 300 kV, multislice, an ideal counting camera.
Made once, in one to four minutes, and read from the file from then on. A method is developed on one
specimen and seed and judged on others. PDB ids are fetched from the wwPDB, unless they are in the
folder that TEM_TAICHI_CACHE names.
"""

import argparse
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import tem_taichi as tt
from experiments.runs import STRUCTURES
from tem_taichi.export.volumes import potential_volume
from tem_taichi.series.build import build_specimen

THICKNESS, DEFOCUS, VOLTAGE, TILTS, DOSE = 2000.0, 30000.0, 300.0, 41, 120.0
"""[A], [A], [kV], number, and [e-/A^2] of all."""
_CROWD = [
    "specimen.particles.large={structure: 3cf3, count: 100}",
    "specimen.particles.protein={globule: 300, count: 600}",
    "specimen.particles.small={globule: 80, count: 1200}"]
SPECIMENS = {
    # Vesicles, ribosomes and proteins, as in a lysate.
    "cell": ["specimen.particles.vesicle={vesicle: 800, count: 11}",
             "specimen.particles.ribosome={structure: 4v5d, count: 100}", *_CROWD],
    # Filaments, patches of membrane, and ferritin.
    "filaments": [
        "specimen.particles.microtubule={globule: 50, placement: helix, rise: 3.1538, "
        "twist: 110.769, axis_distance: 112, length: 3000, count: 4}",
        "specimen.particles.actin={globule: 42, placement: helix, rise: 27.6, twist: -166.6, "
        "axis_distance: 16, length: 2500, count: 10}",
        "specimen.particles.patch={membrane: [900, 900], bend: 900, count: 5}",
        "specimen.particles.ferritin={structure: 4v1w, count: 120}", *_CROWD],
    # The cell with beads of gold.
    "beads": ["specimen.particles.fiducial={fiducial: 100, count: 24}",
              "specimen.particles.vesicle={vesicle: 800, count: 9}",
              "specimen.particles.ribosome={structure: 4v5d, count: 80}", *_CROWD]}
# The filaments with as many.
SPECIMENS["beads_filaments"] = [SPECIMENS["beads"][0], *SPECIMENS["filaments"]]


@dataclass(frozen=True, eq=False)
class CellSeries:
    """A tilt series and the truth behind it."""

    images: np.ndarray
    """Electrons counted, (n, ny, nx)."""
    noise_free: np.ndarray
    """Their means, (n, ny, nx)."""
    tilts: pd.DataFrame
    """tilt_angle, axis_angle [deg], defocus [A], dose and prior_dose [e-/A^2] of each image."""
    truth: np.ndarray
    """Potential of the matter relative to the ice, undamaged [V], (nz, ny, nx)."""
    pixel_size: float
    """Of the images, and of the truth's voxels [A]."""


def overrides(specimen: str, seed: int, size: int, pixel: float) -> list[str]:
    """Of the default scene.

    Args:
        specimen: of SPECIMENS.
        seed: of places, ice and counts.
        size: pixels along a side.
        pixel: [A].
    """
    field = size * pixel
    # Wide enough that images at 60 degrees, which show twice the field, have a specimen all over.
    wide = 2 * field + THICKNESS * np.tan(np.pi / 3)
    crowd = wide * (field + 400) / (6536 * 1936)  # relative to the default field's
    return [
        "specimen=empty", f"seed={seed}", f"shape=[{size},{size}]", f"pixel_size={pixel}",
        f"optics.defocus={DEFOCUS}", "microscope=krios", "detector=ideal",
        f"dose={DOSE / TILTS}",
        "tilts={scheme: dose_symmetric, minimum: -60, maximum: 60, step: 3}", "force=true",
        f"specimen.ice.thickness={THICKNESS}", f"specimen.size=[{wide},{field + 400}]",
        *(_scaled(word, crowd) for word in SPECIMENS[specimen])]


def _scaled(word: str, factor: float) -> str:
    before, count = word[:-1].split("count: ")
    return f"{before}count: {max(1, round(int(count) * factor))}}}"


def cell_series(file: Path | None, specimen: str = "cell", seed: int = 0, size: int = 192,
                pixel: float = 8.0) -> CellSeries:
    """From the file, or simulated and kept there.

    Args:
        file: npz; None = simulate and keep nothing.
        specimen: of SPECIMENS.
        seed: of places, ice and counts.
        size: pixels along a side.
        pixel: [A].

    Raises:
        ValueError: if the file is of other arguments.
    """
    words = overrides(specimen, seed, size, pixel)
    if file is not None and file.is_file():
        with np.load(file) as kept:
            if kept["overrides"].tolist() != words:
                raise ValueError(f"{file}: is of {' '.join(kept['overrides'])}; must be of "
                                 f"{' '.join(words)}, or not be there")
            return CellSeries(
                kept["images"], kept["noise_free"], pd.read_csv(io.StringIO(str(kept["tilts"]))),
                kept["truth"], float(kept["pixel_size"]))
    if STRUCTURES.is_dir():
        os.environ.setdefault("TEM_TAICHI_CACHE", str(STRUCTURES))
    scene = tt.load_scene(overrides=words)
    built = build_specimen(scene)
    series = tt.simulate(scene, specimen=built)
    assert series.noise_free is not None
    truth = potential_volume(built, (round(THICKNESS / pixel), size, size), pixel)
    found = CellSeries(series.images.numpy(), series.noise_free.numpy(), series.tilts, truth, pixel)
    if file is not None:
        np.savez(file, overrides=words, images=found.images, noise_free=found.noise_free,
                 tilts=found.tilts.to_csv(index=False), truth=truth, pixel_size=pixel)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--specimen", choices=[*SPECIMENS], default="cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--pixel", type=float, default=8.0)
    given = parser.parse_args()
    begun = time.perf_counter()
    found = cell_series(given.file, given.specimen, given.seed, given.size, given.pixel)
    print(found.tilts.to_string())
    print(f"{found.images.shape} images of {found.images.mean():.1f} electrons a pixel; truth "
          f"{found.truth.shape}, {found.truth.std():.3f} V; {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
