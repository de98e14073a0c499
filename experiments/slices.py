"""How far images of thick slices are from those of very thin ones, by how slices share atoms.

    python -m experiments.slices [--json FILE] [--plot FILE.png] [--cost]

In double precision: protein, virions (5IRE, from DATA) and gold, at several pixels, voltages and
tilts. Thickness is given as theta = pi wavelength kc^2 thickness, with kc the detector's Nyquist
frequency. The error is the rms difference of two images on the detector over the rms contrast, the
greatest of those at 0.3, 1 and 3 um under focus, and that of the wave over the scattered one.
--cost measures instead the CPU seconds of one wave of a crowd, thread for thread.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from experiments.panels import WIDTH, letter, save, small
from tem_taichi import Exposure, Optics, Poses, kind_of, read_structure
from tem_taichi.device import as_tensor, current, init
from tem_taichi.grid import squared_frequencies
from tem_taichi.instrument.multislice import propagated
from tem_taichi.instrument.tem import TEM
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, wavelength
from tem_taichi.specimen.depth import compensation, depth_weights
from tem_taichi.specimen.fiducials import gold_kind
from tem_taichi.specimen.kinds import Kind
from tem_taichi.specimen.splatting import narrow, splat
from tem_taichi.specimen.view import Attenuation, View

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "atoms"
DEFOCI = (3e3, 1e4, 3e4)
THETAS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.6)
ICE = 4.48  # V that atoms displace


@dataclass(frozen=True)
class Case:
    """What is seen, and how."""

    name: str
    particle: str
    """A structure, or the diameter of a gold bead [A]."""
    b_factor: float | None
    pixel: float
    voltage: float
    tilt: float = 0.0
    pixels: int = 192
    copies: int = 1
    spread: tuple[float, float, float] = (0.0, 0.0, 0.0)
    every: bool = False
    """Whether all ways of sharing are measured, or only the better ones."""


CASES = (
    Case("apoferritin", "4v1w", None, 2.0, 300.0, every=True, pixels=128),
    Case("apoferritin", "4v1w", 0.0, 1.0, 300.0, every=True),
    Case("apoferritin", "4v1w", 0.0, 0.5, 100.0, 30.0, pixels=288),
    Case("4 apoferritins", "4v1w", 0.0, 2.0, 100.0, 60.0, 256, 4, (300.0, 300.0, 600.0), True),
    Case("10 apoferritins", "4v1w", 0.0, 4.0, 200.0, 60.0, 192, 10, (600.0, 600.0, 1500.0)),
    Case("10 apoferritins", "4v1w", 0.0, 10.0, 300.0, 0.0, 128, 10, (800.0, 800.0, 1800.0)),
    Case("10 parts of Zika", "5IRE", None, 4.0, 300.0, 0.0, 128, 10, (300.0, 300.0, 1500.0)),
    Case("gold, 10 nm", "100", 0.6, 1.0, 300.0),
    Case("gold, 5 nm", "50", 0.0, 1.0, 100.0),
    Case("gold, 10 nm", "100", 0.6, 1.5, 300.0),
    Case("4 gold, 10 nm", "100", 0.6, 4.0, 100.0, 0.0, 128, 4, (200.0, 200.0, 600.0)),
)


def curve(z: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By 3 f^2 - 2 f^3 of the way between two slices."""
    layers, weights = depth_weights(z, n, "smooth")
    return layers, weights**2 * (3 - 2 * weights)


def quadratic(z: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By the quadratic B-spline, among three slices."""
    first = z.floor() - 1
    off = z - first - 1.5
    weights = torch.stack([(0.5 - off) ** 2 / 2, 0.75 - off**2, (0.5 + off) ** 2 / 2])
    return first.long() + torch.arange(3)[:, None], weights


def wider(view: View, voltage: float) -> torch.Tensor:
    """What `depth.compensation` is for the linear one, for the quadratic B-spline."""
    nu = squared_frequencies(view.shape, view.pixel_size, half=True) * (
        wavelength(voltage) * view.slice_thickness / 2)
    cos = torch.cos(2 * math.pi * nu)
    return 60 * torch.sinc(nu) ** 3 / (32 + 26 * cos + 2 * cos**2)


WAYS: dict[str, tuple[Callable, Callable]] = {
    "nearest": (lambda z, n: depth_weights(z, n, "nearest"), lambda view, voltage: None),
    "3 f^2 - 2 f^3": (curve, lambda view, voltage: None),
    "linear": (lambda z, n: depth_weights(z, n, "smooth"), lambda view, voltage: None),
    "linear, compensated": (lambda z, n: depth_weights(z, n, "smooth"), lambda view, voltage:
                            compensation("smooth", view.shape, view.pixel_size,
                                         view.slice_thickness, voltage)),
    "quadratic, compensated": (quadratic, wider),
}


@dataclass(frozen=True)
class Shared:
    """Copies of one kind of particle that slices share in some way; a `Specimen`."""

    kind: Kind
    pose: Poses
    way: str

    def _positions(self, view: View) -> torch.Tensor:
        turned = torch.einsum("cij,nj->cni", as_tensor(self.pose.rotations), self.kind.positions)
        return (turned + as_tensor(self.pose.positions)[:, None]).reshape(-1, 3) @ view.rotation.T

    def depth_range(self, view: View) -> tuple[float, float]:
        """With a slice more on either side, which all ways have enough of."""
        z = self._positions(view)[:, 2]
        return float(z.min()) - view.slice_thickness, float(z.max()) + view.slice_thickness

    def slices(self, view: View, first: int, count: int) -> torch.Tensor:
        """See `view.Specimen`."""
        ny, nx = view.shape
        out = torch.zeros((count, ny, nx), dtype=current().dtype)
        scale = as_tensor([view.pixel_size, view.pixel_size, view.slice_thickness])
        pixels = self._positions(view) / scale + as_tensor(
            [nx // 2, ny // 2, -view.entrance / view.slice_thickness])
        weights, factor = WAYS[self.way]
        template = torch.arange(len(self.kind.positions)).repeat(len(self.pose.positions))
        for layer, part in zip(*weights(pixels[:, 2], view.n_slices), strict=True):
            here = torch.nonzero((layer >= first) & (layer < first + count)).flatten()
            for group, strength in ((self.kind.group, 1.0), (self.kind.displaced, ICE)):
                if group is None:
                    continue
                some, table = group.take(template[here]), group.table.clone()
                table[:, 1] /= view.pixel_size**2
                out = splat(out, pixels[here, 0], pixels[here, 1], layer[here] - first,
                            some.weight * part[here] * strength,
                            some.broadening / view.pixel_size**2, some.kind, table)
        return narrow(out, SCATTERING_TO_POTENTIAL / view.pixel_size**2,
                      factor(view, float(view.voltage)))

    def attenuation(self, view: View) -> Attenuation | None:
        """Nothing."""
        return None


def specimen_of(case: Case) -> tuple[Kind, Poses]:
    """Kind and poses, at random but the same in every run."""
    rng = np.random.default_rng(0)
    if case.particle.isdigit():
        kind = gold_kind("gold", float(case.particle), case.b_factor or 0.0)
    else:
        file = DATA / f"{case.particle}.pdb"
        atoms = read_structure(str(file) if file.exists() else case.particle,
                               hydrogens="parent").centred()
        if case.b_factor is not None:
            atoms = replace(atoms, b_factors=torch.full_like(atoms.b_factors, case.b_factor))
        kind = kind_of(atoms, case.particle)
    turns = np.linalg.qr(rng.standard_normal((case.copies, 3, 3)))[0]
    turns *= np.sign(np.linalg.det(turns))[:, None, None]
    return kind, Poses((rng.random((case.copies, 3)) - 0.5) * np.array(case.spread), turns)


def unit(case: Case) -> float:
    """Thickness [A] at which theta is 1."""
    return 1 / (math.pi * wavelength(case.voltage) * (0.5 / case.pixel) ** 2)


@torch.no_grad()
def seen(case: Case, parts: tuple[Kind, Poses], way: str, thickness: float) -> list[torch.Tensor]:
    """The wave in the plane of the specimen's centre, and the images."""
    instrument = TEM((case.pixels,) * 2, (case.pixels * 3 // 2,) * 2, case.pixel, case.voltage,
                     slice_thickness=thickness)
    exposures = [Exposure(Optics(defocus=defocus), tilt_angle=case.tilt) for defocus in DEFOCI]
    specimen = Shared(*parts, way)
    wave, distance = instrument.exit_wave(specimen, exposures[0])
    images = [instrument.image(specimen, one, wave, distance) for one in exposures]
    return [propagated(wave, instrument.wave_pixel, -distance, case.voltage), *images]


def measure(case: Case) -> list[dict[str, float | str]]:
    """One row for each way and thickness: errors relative to the thinnest slices."""
    parts = specimen_of(case)
    thin = max(0.25, min(4.0, 0.01 * unit(case)))
    truth = seen(case, parts, "linear, compensated", thin)
    rows: list[dict[str, float | str]] = []
    for way in WAYS if case.every else list(WAYS)[-2:]:
        for theta in THETAS:
            found = seen(case, parts, way, theta * unit(case))
            wave, *images = (float((a - b).norm() / (b - b.mean()).norm())
                             for a, b in zip(found, truth, strict=True))
            rows.append({"number": CASES.index(case), "case": case.name,
                         "b_factor": "file" if case.b_factor is None else case.b_factor,
                         "pixel": case.pixel, "voltage": case.voltage, "tilt": case.tilt,
                         "way": way, "theta": theta, "thickness": theta * unit(case),
                         "wave": wave, "image": max(images)})
    return rows


def cost() -> list[dict[str, float | str]]:
    """CPU seconds of a wave of 60 apoferritins, each way at the thickness of 1 %."""
    case = Case("crowd", "4v1w", None, 1.7, 300.0, 0.0, 512, 60, (700.0, 700.0, 1350.0))
    parts, rows = specimen_of(case), []
    for way, theta in (("nearest", 0.06), ("linear, compensated", 0.6),
                       ("quadratic, compensated", 1.2)):
        spent = []
        for _ in range(2):
            begun = time.process_time()
            seen(case, parts, way, theta * unit(case))
            spent.append(time.process_time() - begun)
        rows.append({"way": way, "thickness": theta * unit(case), "seconds": min(spent)})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Errors of images over theta, by way and by case."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True, layout="constrained")

    def line(ax: Axes, some: list[dict], style: str, label: str) -> None:
        ax.loglog([row["theta"] for row in some], [100 * row["image"] for row in some], style,
                  ms=2.5, lw=0.9, label=label)

    for way in WAYS:
        line(axes[0], [row for row in rows if row["number"] == 1 and row["way"] == way], "o-", way)
    for n, case in enumerate(CASES):
        some = [row for row in rows if row["number"] == n and row["way"] == "linear, compensated"]
        line(axes[1], some, "s--" if "gold" in case.name else "o-",
             f"{case.name}, {case.pixel:g} A, {case.voltage:g} kV")
    for ax in axes:
        ax.axhline(1, color="grey", lw=0.8)
        ax.axvline(0.6, color="grey", lw=0.8, ls=":")
        ax.set(xlabel="theta = pi wavelength kc^2 thickness", ylim=(3e-4, 50))
        ax.legend(fontsize=4.8, loc="lower right")
        small(ax)
    axes[0].set_ylabel("error of images [% of their contrast]")
    letter(axes)
    small(axes[0])
    save(figure, path)


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    init("cpu", "float32" if arguments.cost else "float64")
    rows = cost() if arguments.cost else []
    for case in () if arguments.cost else CASES:
        rows += (new := measure(case))
        first = new[0]
        print(f"\n{case.name}, B {first['b_factor']}, {case.pixel:g} A, {case.voltage:g} kV, "
              f"{case.tilt:g} deg\n{'error of images [%], theta':24s}"
              + "".join(f"{theta:8g}" for theta in THETAS))
        for way in dict.fromkeys(row["way"] for row in new):
            print(f"{way:26s}" + "".join(f"{100 * row['image']:8.3f}" for row in new
                                         if row["way"] == way), flush=True)
    for row in rows if arguments.cost else ():
        print(f"{row['way']:26s} {row['thickness']:6.0f} A {row['seconds']:6.1f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
