"""Granular ice beside a continuum: its spectrum, an image of each, and their Thon rings.

Images are 20 nm wide, of 40 e-/A^2 on an ideal detector, 1 um under focus at 300 kV.
Run from the checkout: `python -m experiments.ice [FILE.png]`. The points of an atomistic box
of water are drawn where the folder ../shared has it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.panels import WIDTH, in_nanometres, letter, save, small
from tem_taichi import read_structure, slice_potential
from tem_taichi.device import as_tensor, init
from tem_taichi.grid import fourier_crop
from tem_taichi.instrument.multislice import multislice
from tem_taichi.instrument.optics import Optics, ctf, form_image
from tem_taichi.physics import interaction_constant
from tem_taichi.specimen.ice import ice_power, ice_slice, mean_potential, structure_factor

FILE = Path(__file__).parent / "figures" / "ice.png"
BOX = Path(__file__).resolve().parents[2] / "shared/data/atoms/tip3p_box.pdb"
VOLTAGE, SLICE, THICKNESS, DOSE = 300.0, 20.0, 500.0, 40.0
WAVE_SHAPE, WAVE_PIXEL = (768, 768), 0.9
SHAPE, PIXEL = (512, 512), 1.35
LENS = Optics(defocus=10000.0, spherical_aberration=2.7, energy_spread=0.5)


def power(image: torch.Tensor, pixel_size: float) -> np.ndarray:
    """|V(k)|^2 per area, zero frequency in the middle."""
    spectrum = np.fft.fftshift(np.fft.fft2(image.double().numpy())) * pixel_size**2
    return np.abs(spectrum) ** 2 / (image.numel() * pixel_size**2)


def radius(shape: tuple[int, int], pixel_size: float) -> np.ndarray:
    ky, kx = (np.fft.fftshift(np.fft.fftfreq(n, d=pixel_size)) for n in shape)
    return np.hypot(ky[:, None], kx[None, :])


def rings(values: np.ndarray, k: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and means of rings; the centre is left out."""
    index = np.rint(k / step).astype(int).ravel()
    count = np.bincount(index)
    inside = slice(1, int(k[0].min() / step))
    mean = [np.bincount(index, v.ravel()) / np.maximum(count, 1) for v in (k, values)]
    return mean[0][inside], mean[1][inside]


def box_of_water(n: int = 70, box: float = 35.0) -> tuple[np.ndarray, np.ndarray]:
    """Power per volume of liquid water, seen along x, y and z."""
    atoms = read_structure(BOX)
    found = np.zeros((n, n))
    for axis in range(3):
        turned = replace(atoms, positions=(atoms.positions - box / 2).roll(axis, 1).contiguous())
        projected = slice_potential(turned, (n, n), box / n, box, box, periodic=True)[0]
        found += power(projected, box / n) / box / 3
    k, values = rings(found, radius((n, n), box / n), 1 / box)
    return k[k < n / box / 3], values[k < n / box / 3]


def image(stack: torch.Tensor) -> torch.Tensor:
    """Of 50 nm of slices, which act where they begin, with the mean of them at the defocus."""
    lens = replace(LENS, defocus=LENS.defocus + (THICKNESS + SLICE) / 2)
    wave = multislice(stack, WAVE_PIXEL, SLICE, VOLTAGE)
    return fourier_crop(form_image(wave, WAVE_PIXEL, VOLTAGE, lens), SHAPE)


def draw_spectra(axes: Axes, granular: torch.Tensor) -> None:
    k = torch.linspace(0, 0.7, 500)
    axes.plot(k, ice_power(k), "k", label="ice, model")
    axes.plot(*rings(power(granular.sum(0), WAVE_PIXEL) / THICKNESS,
                     radius(WAVE_SHAPE, WAVE_PIXEL), 4e-3),
              color="tab:blue", lw=0.8, label="ice, 50 nm of slices")
    if BOX.exists():
        axes.plot(*box_of_water(), "o", ms=4, color="tab:red", label="liquid, atoms (TIP3P)")
    axes.plot(k, 100 * structure_factor(k), ":", color="gray", label="100 S(k)")
    axes.set(xlim=(0, 0.7), ylim=(0, 700), xlabel="k [1/Å]", ylabel="power per volume [V² Å³]")
    axes.legend(fontsize=6)


def draw_rings(axes: Axes, images: list[torch.Tensor]) -> None:
    for shown, name, colour in zip(images, ("granular", "continuum"), ("tab:blue", "tab:orange"),
                                   strict=True):
        k, values = rings(power(shown, PIXEL), radius(SHAPE, PIXEL), 2e-3)
        axes.plot(k, values, lw=0.9, color=colour, label=name)
    squared = torch.fft.fftshift(ctf(SHAPE, PIXEL, VOLTAGE, LENS)).numpy() ** 2
    volume = ice_power(as_tensor(radius(SHAPE, PIXEL))).numpy()
    model = 4 * interaction_constant(VOLTAGE) ** 2 * THICKNESS * volume
    axes.plot(*rings(squared * model + 1 / DOSE, radius(SHAPE, PIXEL), 2e-3), "k", lw=0.6,
              label="CTF² ice + shot noise")
    axes.set(yscale="log", xlabel="k [1/Å]", ylabel="power of the image [Å²]", xlim=(0, 0.36),
             ylim=(0.015, 2))
    axes.legend(fontsize=6)


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    init("cpu", "float32")
    n_slices = round(THICKNESS / SLICE)
    continuum = torch.full((n_slices, *WAVE_SHAPE), SLICE * mean_potential())
    granular = torch.stack([ice_slice(WAVE_SHAPE, WAVE_PIXEL, SLICE, 1, 0, i)
                            for i in range(n_slices)])
    rng = np.random.default_rng(1)
    images = []
    for stack in (continuum + granular, continuum):
        counts = rng.poisson(image(stack).double().numpy() * DOSE * PIXEL**2)
        images.append(torch.from_numpy(counts / (DOSE * PIXEL**2)))
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    axes = figure.subplots(2, 3)
    draw_spectra(axes[0, 0], granular)
    draw_rings(axes[1, 0], images)
    for column, (shown, name) in enumerate(zip(images, ("granular", "continuum"), strict=True), 1):
        low, high = np.percentile(images[0], [1, 99])
        half = 150 * PIXEL / 20
        axes[0, column].imshow(shown[:150, :150], cmap="gray", vmin=low, vmax=high, origin="lower",
                               interpolation="nearest", extent=np.array([-1, 1, -1, 1]) * half)
        axes[0, column].set_title(f"50 nm of {name} ice", fontsize=8)
        in_nanometres(axes[0, column], half)
        spectrum = power(shown, PIXEL).reshape(128, 4, 128, 4).mean((1, 3))
        edge = 0.5 / PIXEL
        axes[1, column].imshow(np.log(spectrum), cmap="gray", vmin=np.log(0.6 / DOSE),
                               vmax=np.log(6 / DOSE), interpolation="nearest",
                               extent=(-edge, edge, -edge, edge))
        axes[1, column].set_title(f"power spectrum, {name}", fontsize=8)
        axes[1, column].set(xlabel="kx [1/Å]", ylabel="ky [1/Å]")
    for ax in axes.ravel():
        small(ax)
    letter(axes.ravel())
    save(figure, file)


if __name__ == "__main__":
    main()
