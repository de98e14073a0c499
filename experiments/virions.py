"""Five thousand Zika virions in 2048 x 2048 x 300 nm, and a SARS-CoV-2-like virion.

Run it with `python -m experiments.virions`; PDB ids 5IRE, 6VXX and 2OM3 are fetched from the wwPDB,
unless they are in the folder that TEM_TAICHI_CACHE names.
"""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

import tem_taichi as tt
from experiments.panels import WIDTH, in_nanometres, letter, save
from experiments.runs import STRUCTURES
from experiments.table1 import LIPIDS, ONE, overrides

FIGURE = Path(__file__).parent / "figures" / "virions.png"
DOSE = 60.0  # e-/A^2
CORONA = [
    "specimen=coronavirus", "shape=[360,360]", "pixel_size=4", "optics.defocus=30000",
    "tilts={scheme: listed, angles: [0]}", "specimen.ice.granularity=0",
    "interaction.mode=projection", f"specimen.particles.envelope={{{ONE}}}"]


def main() -> None:
    if STRUCTURES.is_dir():
        os.environ.setdefault("TEM_TAICHI_CACHE", str(STRUCTURES))
    more = ([f"specimen.particles.envelope.lipids={LIPIDS}",
             "specimen.particles.envelope.lipid_area=64"] if LIPIDS.is_file() else [])
    scenes = [[*overrides("zika_5000", "projection", 1, [])], [*CORONA, *more]]
    crowd, virion = (tt.simulate(tt.load_scene(overrides=[*scene, f"dose={DOSE}", "force=true"]))
                     for scene in track(scenes, "simulating"))
    whole, one = crowd.noise_free[0].numpy(), virion.noise_free[0].numpy()
    middle = crowd.images[0].numpy()[864:1184, 864:1184]
    panels = [(whole.reshape(1024, 2, 1024, 2).mean(axis=(1, 3)), 1024.0, "5,000 Zika virions"),
              (middle, 160.0, f"its middle, {DOSE:g} e$^-$/Å$^2$"),
              (one, 72.0, "SARS-CoV-2-like virion")]
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplot_mosaic([[0, 1], [0, 2]], width_ratios=[2, 1])
    for ax, (image, half, title) in zip(axes.values(), panels, strict=True):
        low, high = np.percentile(image, (0.3, 99.7))
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower",
                  extent=np.array([-1, 1, -1, 1]) * half, interpolation="antialiased")
        ax.set_title(title, fontsize=7)
        in_nanometres(ax, half)
    letter(axes.values())
    save(figure, FIGURE)


if __name__ == "__main__":
    main()
