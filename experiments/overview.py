"""The README's figure: specimen, exit wave, and images at two defoci without and with noise.

Run from the checkout: `python -m experiments.overview [FILE.png]`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import tem_taichi as tt
from experiments.panels import WIDTH, in_nanometres, letter, save
from tem_taichi.device import init
from tem_taichi.export.preview import block_mean
from tem_taichi.series.build import build_specimen
from tem_taichi.series.plan import plan

FILE = Path(__file__).parent / "figures" / "overview.png"
DEFOCI = (6000.0, 25000.0)
BLOCKS = 8


def scene_at(defocus: float) -> tt.Scene:
    return tt.load_scene(overrides=[
        f"optics.defocus={defocus}", "shape=[160,160]", "pixel_size=2.4", "dose=25",
        "specimen.particles.apoferritin.count=5", "seed=4", "interaction.slice_thickness=10",
        "tilts.scheme=listed", "tilts.angles=[0]", "tilts.minimum=0", "tilts.maximum=0"])


def centre(array: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """The middle of an array with the margin cut off."""
    corner = [(full - n) // 2 for full, n in zip(array.shape, shape, strict=True)]
    return array[corner[0]:corner[0] + shape[0], corner[1]:corner[1] + shape[1]].numpy()


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    scene = scene_at(DEFOCI[0])
    init(scene.compute.arch, scene.compute.dtype)
    specimen, planned = build_specimen(scene), plan(scene)
    instrument, exposure = planned.instrument, planned.exposures[0]
    with torch.no_grad():
        view = instrument.view(specimen, exposure)
        potential = specimen.slices(view, 0, view.n_slices).real.sum(0)
        wave, _ = instrument.exit_wave(specimen, exposure)
    field = tuple(round(n * scene.pixel_size / view.pixel_size) for n in scene.shape)
    panels = [(title, unit, block_mean(centre(image, field), scene.shape[0]), "viridis")
              for title, unit, image in (("projected potential minus ice", "V Å", potential),
                                         ("exit wave", "phase [rad]", torch.angle(wave)))]
    for defocus in DEFOCI:
        series = tt.simulate(scene_at(defocus), specimen=specimen)
        for name, images in (("expected", series.noise_free), ("recorded", series.images)):
            panels.append((f"{defocus / 1e4:g} µm under focus, {name}", "e⁻ per pixel",
                           images[0].numpy(), "gray"))
    draw(panels, scene.shape[0] * scene.pixel_size / 20, file)


def draw(panels: list[tuple[str, str, np.ndarray, str]], half: float, file: Path) -> None:
    """Two rows of three panels: title, unit, image and colours; half is of the field [nm]."""
    figure = Figure(figsize=(WIDTH, 4.1), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True).T.ravel()
    for ax, (title, unit, image, colours) in zip(axes, panels, strict=True):
        low, high = np.percentile(image, [0.5, 99.5])
        drawn = ax.imshow(image, cmap=colours, vmin=low, vmax=high, origin="lower",
                          extent=np.array([-1, 1, -1, 1]) * half, interpolation="nearest")
        ax.set_title(title, fontsize=7)
        in_nanometres(ax, half)
        ax.label_outer()
        bar = figure.colorbar(drawn, ax=ax, shrink=0.7, pad=0.03)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    letter(axes)
    save(figure, file, numbers=json.dumps(dict(zip(
        (title for title, *_ in panels), map(numbers, (image for *_, image, _ in panels)),
        strict=True))))


def numbers(image: np.ndarray) -> list[list[float]]:
    """What is drawn, as means of BLOCKS x BLOCKS parts: they tell whether a figure is of today."""
    side = len(image) // BLOCKS
    means = image.reshape(BLOCKS, side, BLOCKS, side).mean(axis=(1, 3))
    return [[float(f"{mean:.6g}") for mean in row] for row in means]


if __name__ == "__main__":
    main()
