"""A real needle in dark field, 77 tilts, by each method: how images held out are explained.

    python -m experiments.needle [--bin 6] [--passes 60]

Images are aligned by what no tilt changes: the matter in each plane across the axis, and its centre
of mass on the axis. Counts are taken to be proportional to matter. One tilt of eight is held out;
what explains it is judged with a law of noise learned from what each method leaves of the others.
The series (NIST's, in etspy's test data) is read from ../shared/data.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.runs import RESULTS, STRUCTURES
from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.scans import scan_of
from tem_taichi.estimate.stem_fit import Images, Plan, explained, fitted, split
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram import iterated
from tem_taichi.files.io import read_images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.tomography import weighted_back_projection
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays

DATA = STRUCTURES.parent / "stem"
TABLE, FIGURE = RESULTS / "needle.md", RESULTS.parent / "figures" / "needle.png"
PIXEL, ADDED, HELD, AXIS = 33.6, 32768.0, 8, 90.0
"""[A]; what the file's integers lack; one of so many images is held out; of the axis [deg]."""


def shifts_of(counts: NDArray) -> NDArray:
    """Of each image along x and y [pixel], (n, 2): by the matter of each column, and its middle.

    Args:
        counts: of matter alone, (n, ny, nx); the axis lies along x, all across it is seen.
    """
    profiles = counts.sum(1)
    slopes = np.gradient(profiles, axis=1)
    ny, nx = counts.shape[1:]
    wanted, along = slopes.mean(0), np.zeros(len(counts))
    places = np.fft.rfftfreq(nx)
    for _ in range(3):
        moved = []
        for n, slope in enumerate(slopes):
            across = np.fft.irfft(np.fft.rfft(slope) * np.fft.rfft(wanted).conj(), nx)
            top = int(across.argmax())
            a, b, c = across[top - 1], across[top], across[(top + 1) % nx]
            place = top + (a - c) / (2 * (a - 2 * b + c))
            along[n] = place - nx if place > nx / 2 else place
            moved.append(np.fft.irfft(np.fft.rfft(slope) * np.exp(
                2j * np.pi * places * along[n]), nx))
        wanted = np.mean(moved, axis=0)
    # The same planes in all images: those of the right two thirds.
    middle = np.empty(len(counts))
    rows = np.arange(ny) - ny // 2
    for n, image in enumerate(counts):
        part = image[:, int(np.clip(nx // 3 + round(along[n]), 0, nx - 1)):]
        middle[n] = (part.sum(1) * rows).sum() / part.sum()
    return np.stack([along - along.mean(), middle], axis=1)


def needle(size: int) -> Images:
    """Images, aligned, on voxels of some pixels."""
    stack, _ = read_images(DATA / "HAADF_needle.mrc.gz")
    angles = np.loadtxt(DATA / "HAADF_needle.rawtlt")
    stack = stack.astype(np.float64) + ADDED
    dark = float(np.median(stack))
    shifts = PIXEL * shifts_of(np.clip(stack - dark - 50, 0, None))
    scan = scan_of(stack, size, "dark", None, dark)
    ny, nx = scan.counts.shape[1:]
    moved = [(size * (n // 2) + (size - 1) / 2 - 128) * PIXEL for n in (nx, ny)]
    voxel, side = PIXEL * size, 2 * (56 // size) + 2  # pixels about the axis that hold the needle
    rays = Rays(torch.stack([tilt_rotation(float(a), AXIS) for a in angles]),
                torch.as_tensor(shifts - np.array(moved)).float(), (side, side, nx), voxel,
                (ny, nx), voxel)
    exposures = [Exposure(tilt_angle=float(a), axis_angle=AXIS, shift_x=float(x), shift_y=float(y),
                          dose=scan.beam / voxel**2)
                 for a, (x, y) in zip(angles, rays.shifts, strict=True)]
    return Images(scan.counts, rays, exposures, STEM((ny, nx), voxel, "dark"))


def lines(images: Images) -> Series:
    """Line integrals."""
    beam = float(images.exposures[0].dose) * images.rays.pixel**2
    made = -(1 - images.counts / beam).clamp(min=0.01).log()
    return Series(made, images.rays, torch.ones_like(made))


def wbp(images: Images, passes: int) -> Tensor:
    some = lines(images)
    return weighted_back_projection(some.images, some.rays, 2 * images.rays.voxel)


def sirt_tv(images: Images, passes: int) -> Tensor:
    return iterated(lines(images), 60, None, True, HELD, lambda done, of: None, Kept()).volume


def fit(plan: Plan, images: Images, passes: int) -> Tensor:
    given = replace(plan, passes=passes, warm=passes)
    return fitted(images, given, HELD, lambda done, of: None, Kept()).volume


METHODS: dict[str, Callable[[Images, int], Tensor]] = {
    "WBP": wbp, "SIRT-TV": sirt_tv,
    "voxels, L2": partial(fit, Plan("voxels", "l2")),
    "voxels + TV, L2": partial(fit, Plan("voxels", "l2", tv=None)),
    "network, L2": partial(fit, Plan("implicit", "l2")),
    "network, flow": partial(fit, Plan("implicit", "flow", law_steps=150)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=int, default=6)
    parser.add_argument("--passes", type=int, default=60)
    given = parser.parse_args()
    init("cpu", "float32")
    images = needle(given.bin)
    shown, held = split(images, HELD)
    text = ("| method | - log p of a held-out pixel, nat | rms left, held out, counts | shown | "
            "above 5 % of the densest, % of voxels | CPU s |\n" + "| --- " * 6 + "|\n")
    volumes: dict[str, Tensor] = {}
    for name, method in METHODS.items():
        begun = time.process_time()
        volumes[name] = method(images.some(shown), given.passes)
        spent = time.process_time() - begun
        told = explained(images, volumes[name].clamp(min=0), shown, held, steps=150)
        top = float(torch.quantile(volumes[name], 0.99))
        wide = 100 * float((volumes[name] > 0.05 * top).float().mean())
        line = (f"| {name} | {told['nll']:.3f} | {told['rms']:.0f} | {told['shown_rms']:.0f} | "
                f"{wide:.1f} | {spent:.0f} |\n")
        print(line, end="", flush=True)
        text += line
    TABLE.write_text(text, encoding="utf-8")
    figure(volumes, images)


def figure(volumes: dict[str, Tensor], images: Images) -> None:
    """A plane along the needle, and one across it, on which the missing wedge shows."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(volumes), figsize=(2.2 * len(volumes), 4))
    nx = next(iter(volumes.values())).shape[2]
    for column, (name, volume) in zip(axes.T, volumes.items(), strict=True):
        top = float(torch.quantile(volume, 0.995))
        across = volume[:, :, nx // 2]
        for place, plane in zip(column, (volume[volume.shape[0] // 2], across), strict=True):
            place.imshow(plane.numpy(), cmap="gray", vmin=0, vmax=top, origin="lower")
            place.set_axis_off()
        column[0].set_title(name, fontsize=9)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
