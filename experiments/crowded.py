"""A crowded specimen 200 nm thick: two tilts, before and after a high dose.

Run it with `python -m experiments.crowded`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

import tem_taichi as tt
from experiments.panels import WIDTH, in_nanometres, letter, save
from tem_taichi.export.preview import block_mean

FIGURE = Path(__file__).parent / "figures" / "crowded.png"
PRIOR = (0.0, 120.0)  # e-/A^2
SCENE = [
    "specimen=crowded", "shape=[512,512]", "pixel_size=5", "dose=3", "optics.defocus=40000",
    "tilts={scheme: listed, angles: [0, 45]}", "specimen.ice.thickness=2000",
    "specimen.size=[3600,3200]", "interaction.slice_thickness=50",
    "specimen.particles.vesicle.count=6", "specimen.particles.vesicle.vesicle=700",
    "specimen.particles.microtubule={count: 3, length: 3000}",
    "specimen.particles.actin={count: 16, length: 2500}",
    "specimen.particles.apoferritin.count=120", "specimen.particles.protein.count=400",
    "specimen.particles.fiducial={fiducial: 100, count: 10}"]


def main() -> None:
    scene = tt.load_scene(None, SCENE)
    series = [tt.simulate(replace(scene, tilts=replace(scene.tilts, prior_dose=prior)))
              for prior in track(PRIOR, "simulating")]
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots(2, 4)
    pixel = scene.pixel_size / 10  # [nm]
    for row, prior, one in zip(axes, PRIOR, series, strict=True):
        for n, angle in enumerate(one.tilt_angles):
            noisy, clean = one.images[n].numpy(), one.noise_free[n].numpy()
            for ax, image, what, size in (
                    (row[2 * n], block_mean(noisy, 171), "3 e$^-$/Å$^2$", 3 * pixel),
                    (row[2 * n + 1], clean[176:336, 176:336], "no noise, centre", pixel)):
                low, high = np.percentile(image, (0.5, 99.5))
                half = len(image) * size / 2
                ax.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower",
                          extent=np.array([-1, 1, -1, 1]) * half, interpolation="nearest")
                ax.set_title(f"{angle:g}°, after {prior:g} e$^-$/Å$^2$:\n{what}", fontsize=7)
                in_nanometres(ax, half)
    letter(axes.ravel())
    save(figure, FIGURE)


if __name__ == "__main__":
    main()
