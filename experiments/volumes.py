"""Particles as volumes against the same particles atom by atom: errors, and the time of a pose.

`python -m experiments.volumes [structure[:assembly] ...]` adds structures to apoferritin, gold,
protein and a vesicle. Beside it torch-fourier-slice 0.6, where it is installed
(`pip install torch-fourier-slice`).
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track

from experiments.panels import WIDTH, in_nanometres, letter, save, small
from tem_taichi.device import as_tensor, init
from tem_taichi.instrument.multislice import multislice
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.rotations import random_rotations
from tem_taichi.specimen.atoms import read_structure
from tem_taichi.specimen.copies import n_planes, project
from tem_taichi.specimen.fiducials import gold_kind
from tem_taichi.specimen.globules import globule_kind
from tem_taichi.specimen.kinds import Kind, kind_of
from tem_taichi.specimen.membranes import vesicle_kind
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import render
from tem_taichi.specimen.splatting import narrow
from tem_taichi.specimen.view import View
from tem_taichi.specimen.volumes import box_of, made_real, volume_of

HERE = Path(__file__).parent
PIXELS = (1.0, 1.7, 3.3, 5.0, 6.7, 10.0)  # of the wave's grid [A]
POSES, LARGEST, REPEATS = 3, 170, 9
THIN = 20.0  # [A] slices that cut particles


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2."""
    return float((found - expected).norm() / expected.norm())


def by_atoms(kind: Kind, rotations: torch.Tensor, shifts: torch.Tensor, size: int,
             pixel: float) -> torch.Tensor:
    """What `project` makes of a volume, from the atoms."""
    out = torch.zeros((len(rotations), size, size))
    for n, (rotation, shift) in enumerate(zip(rotations, shifts, strict=False)):
        placed = ((kind.positions @ rotation.T)[:, :2] + shift) / pixel + size // 2
        depth = torch.full((len(placed), 1), n + 0.5)
        out = render(out, [kind.group], torch.cat([placed, depth], 1), pixel)
    return narrow(out, SCATTERING_TO_POTENTIAL / pixel**2)


def wave(kind: Kind, pose: Poses, how: str, pixel: float, size: int, thickness: float
         ) -> torch.Tensor:
    """What a copy adds to a plane wave behind it."""
    n = 2 * int(np.ceil((kind.radius + thickness) / thickness))
    view = View(torch.eye(3), torch.zeros(2), (size, size), pixel, thickness,
                entrance=-n * thickness / 2, n_slices=n, depth="smooth", propagates=True)
    drawn = Kind(kind.name, kind.positions, kind.group, render=how)
    slices = ParticlesInIce((drawn,), (pose,), Ice(potential=0.0)).slices(view, 0, n)
    return multislice(slices, pixel, thickness, 300.0) - 1


def errors(kind: Kind, pixel: float) -> dict[str, Any] | None:
    """Of projections, and of waves behind slices thinner and thicker than the particle."""
    box = box_of(kind, pixel)
    if box.patch > LARGEST:
        return None
    rng = np.random.default_rng(0)
    rotations, shifts = random_rotations(POSES, rng), rng.uniform(-5, 5, (POSES, 3)) * pixel
    shifts[:, 2] = 0.3 * THIN
    size = box.patch + 32
    found = project(volume_of(kind, pixel), as_tensor(rotations), as_tensor(shifts[:, :2]),
                    (size, size))
    expected = by_atoms(kind, as_tensor(rotations), as_tensor(shifts[:, :2]), size, pixel)
    pose = Poses(shifts[:1], rotations[:1])
    thick = max(2.2 * kind.radius, 100.0)
    view = View(torch.eye(3), torch.zeros(2), (size, size), pixel, thick, n_slices=3)
    thin, thicker = (difference(*(wave(kind, pose, how, pixel, size, thickness)
                                  for how in ("volume", "atoms"))) for thickness in (THIN, thick))
    return {"kind": kind.name, "scatterers": len(kind.positions), "pixel": pixel,
            "patch": box.patch, "projection": difference(found, expected),
            "wave, slices of 20 A": thin, "thick": thick,
            "planes": 2 * n_planes(2 * box.radius, view) + 1, "wave, thick slices": thicker}


def times(kind: Kind, pixel: float) -> list[dict[str, Any]]:
    """CPU time of a pose and its error, programs taking turns; the volume itself not counted."""
    volume = volume_of(kind, pixel)
    size, n = volume.patch, 32
    rotations = as_tensor(random_rotations(n, np.random.default_rng(1)))
    shifts = torch.zeros(n, 2)
    programs: dict[str, tuple[Callable[[], torch.Tensor], int]] = {
        "volume": (lambda: project(volume, rotations, shifts, (size, size)), n),
        "atoms": (lambda: by_atoms(kind, rotations[:2], shifts, size, pixel), 2)}
    if find_spec("torch_fourier_slice"):
        programs["torch-fourier-slice"] = (fourier_slice(kind, pixel, size, rotations), n)
    expected = by_atoms(kind, rotations[:8], shifts, size, pixel)
    spent: dict[str, list[float]] = {name: [] for name in programs}
    found = {name: run() for name, (run, _) in programs.items()}
    for _ in range(REPEATS):
        for name, (run, poses) in programs.items():
            begin = time.process_time()
            run()
            spent[name].append((time.process_time() - begin) / poses * 1e3)
    return [{"program": name, "size": size, "ms": float(np.median(spent[name])),
             "error": difference(found[name][:8], expected[:len(found[name])])}
            for name in programs]


def fourier_slice(kind: Kind, pixel: float, size: int, rotations: torch.Tensor
                  ) -> Callable[[], torch.Tensor]:
    """The same widened Gaussians by torch-fourier-slice's trilinear slices, twofold padded."""
    from torch_fourier_slice.slice_extraction import extract_central_slices_rfft_3d
    from torch_fourier_slice.volume_utils import separable_sinc2_correction

    real = made_real(kind.group, kind.positions, box_of(kind, pixel), pixel)
    centre = rotations @ box_of(kind, pixel).centre
    full = [2 * size] * 3
    pads = [side for n in reversed(real.shape) for side in [size - n // 2] * 2]
    padded = torch.nn.functional.pad(real, pads) / separable_sinc2_correction(full)
    spectrum = torch.fft.fftshift(torch.fft.rfftn(torch.fft.ifftshift(padded)), dim=(0, 1))
    shift = -2 * np.pi * centre / pixel
    ky, kx = torch.fft.fftfreq(2 * size)[:, None], torch.fft.rfftfreq(2 * size)
    ramps = torch.polar(torch.ones(len(centre), 2 * size, size + 1),
                        shift[:, 1, None, None] * ky + shift[:, 0, None, None] * kx)

    def run() -> torch.Tensor:
        slices = extract_central_slices_rfft_3d(spectrum, rotations.mT, fftfreq_max=0.5)
        slices = torch.fft.ifftshift(slices, dim=-2) * ramps
        images = torch.fft.fftshift(torch.fft.irfft2(slices), dim=(-2, -1))
        half = size // 2
        return narrow(images[:, half:-half, half:-half].contiguous(),
                      SCATTERING_TO_POTENTIAL / pixel**2)

    return run


def draw(rows: list[dict[str, Any]], kind: Kind, pixel: float, file: Path) -> None:
    """Errors over pixel sizes, and a projection by atoms, by volume and what is between."""
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    for name in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == name]
        axes[0].loglog([row["pixel"] for row in own], [row["projection"] for row in own], "o-",
                       ms=3, lw=1, label=name)
    axes[0].axhline(2e-3, color="0.6", lw=0.8, ls="--")
    axes[0].set(xlabel="pixel of the wave [Å]", ylabel="error (relative L2)", ylim=(1e-4, 3e-3))
    axes[0].legend(fontsize=6)
    small(axes[0])
    size = volume_of(kind, pixel).patch
    pose = as_tensor(random_rotations(1, np.random.default_rng(2))), torch.zeros(1, 2)
    atoms = by_atoms(kind, *pose, size, pixel)[0]
    volume = project(volume_of(kind, pixel), *pose, (size, size))[0]
    half, top = size * pixel / 20, float(atoms.max())
    for ax, image, title in zip(axes[1:], (atoms, volume, 200 * (volume - atoms)), (
            "atoms", "volume", "200 x difference"), strict=True):
        ax.imshow(image, cmap="gray", origin="lower", vmin=-top * (image is not atoms
                  and image is not volume), vmax=top, extent=np.array([-1, 1, -1, 1]) * half)
        ax.set_title(title, fontsize=8)
        in_nanometres(ax, half)
    letter(axes)
    save(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("structures", nargs="*", metavar="STRUCTURE[:ASSEMBLY]")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "volumes.json")
    parser.add_argument("--plot", type=Path, default=HERE / "figures" / "volumes.png")
    options = parser.parse_args()
    init("cpu")
    kinds = [structure("4v1w", "apoferritin"), gold_kind("gold, 5 nm", 50.0, 0.2),
             globule_kind("protein, 500 kDa", 500.0), vesicle_kind("vesicle, 30 nm", 300.0)]
    kinds += [structure(name, name.split(":")[0].split("/")[-1]) for name in options.structures]
    rows = [row for kind in track(kinds, "comparing") for pixel in PIXELS
            if (row := errors(kind, pixel))]
    for row in rows:
        print(" | ".join(f"{v:.2g}" if isinstance(v, float) else str(v) for v in row.values()))
    timed = times(kinds[0], 1.8)
    for one in timed:
        print(one)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"errors": rows, "times": timed}, indent=1) + "\n")
    draw(rows, kinds[0], 1.7, options.plot)


def structure(name: str, label: str) -> Kind:
    """Atoms of a file or PDB id, and a biological assembly after a colon."""
    file, _, assembly = name.partition(":")
    return kind_of(read_structure(file, assembly or None).centred(), label)


if __name__ == "__main__":
    main()
