"""The README's figure: specimen, exit wave, and images at two defoci without and with noise.

Run from the checkout: `python -m experiments.overview [FILE.png]`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import tem_taichi as tt
from tem_taichi.device import init
from tem_taichi.forward import exit_wave, view_of
from tem_taichi.pipeline import plan
from tem_taichi.specimen import build_specimen
from tem_taichi.view import slices

FILE = Path(__file__).parent / "figures" / "overview.png"
DEFOCI = (6000.0, 25000.0)


def scene_at(defocus: float) -> tt.Scene:
    return tt.load_scene(overrides=[
        f"optics.defocus={defocus}", "shape=[400,400]", "pixel_size=1.2", "dose=25",
        "specimen.particles.apoferritin.count=7", "seed=4", "interaction.slice_thickness=10",
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
    seen = specimen, planned.instrument, planned.exposures[0]
    with torch.no_grad():
        view = view_of(*seen)
        potential = slices(specimen, view, 0, view.n_slices).real.sum(0)
        wave, _ = exit_wave(*seen)
    field = tuple(round(n * scene.pixel_size / view.pixel_size) for n in scene.shape)
    panels = [("projected potential minus ice [V Å]", centre(potential, field), "viridis"),
              ("exit wave, phase [rad]", centre(torch.angle(wave), field), "viridis")]
    for defocus in DEFOCI:
        series = tt.simulate(scene_at(defocus), specimen=specimen)
        for name, images in (("expected", series.noise_free), ("recorded", series.images)):
            panels.append((f"{defocus / 1e4:g} µm underfocus, {name} [e⁻]", images[0].numpy(),
                           "gray"))
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    for axes, column in zip(figure.subplots(2, 3).T, (0, 2, 4), strict=True):
        for ax, (title, image, colours) in zip(axes, panels[column:column + 2], strict=True):
            low, high = np.percentile(image, [0.5, 99.5])
            drawn = ax.imshow(image, cmap=colours, vmin=low, vmax=high, origin="lower",
                              extent=np.array([-1, 1, -1, 1]) * scene.shape[0]
                              * scene.pixel_size / 20)
            ax.set_title(title, fontsize=11)
            figure.colorbar(drawn, ax=ax, shrink=0.8)
    for ax in figure.axes[:6]:
        ax.set_xticks([-20, 0, 20], ["-20", "0", "20 nm"])
        ax.set_yticks([])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
