"""Octrees of small grids against voxels and SIRT on the phantom of Wang et al. (2023).

    python -m experiments.octree [--size 64] [--noise 0.05] [--methods octree ...] [--json FILE]

The phantom is of ellipsoidal shells of random density about a virion: of --virion FILE, a structure
with an assembly such as 5IRE (Zika), its C-alphas at about a voxel's resolution, else two shells
with spikes. 94 images from -70 to 69.5 degrees, of line integrals over their largest, with Gaussian
noise. PSNR is 20 log10 of the truth's maximum over the root mean square error, in the truth's own
scale, as published; bytes are those of the numbers that are found.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_fit import Grown, Plan, Priors, published, volume_of
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.inverse.measures import structural_similarity
from tem_taichi.inverse.tomography import Sirt
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.faces import Faces, jump
from tem_taichi.specimen.rays import Rays, project

ANGLES = np.arange(-70, 70, 1.5)
STOPS, STRENGTHS = 40, (0.0, 0.3, 1.0, 3.0)
"""Iterations of SIRT, and strengths of the total variation in typical differences, of which the
truth chooses the best."""


@dataclass(frozen=True)
class Case:
    """What every method is given, and the truth."""

    truth: Tensor
    """(n, n, n), from 0 to 1."""
    images: Tensor
    """Line integrals over the largest, with noise, (94, n, n)."""
    scale: float
    """Largest line integral [voxel]."""
    rays: Rays


def assembled(file: str, size: int) -> np.ndarray:
    """Density of a structure's C-alphas, all copies of its first assembly, from 0 to 1.

    Args:
        file: of the structure.
        size: of the phantom; the virion's radius is 0.28 of it.
    """
    import gemmi

    structure = gemmi.read_structure(file)
    atoms = np.array([atom.pos.tolist() for chain in structure[0] for residue in chain
                      for atom in residue if atom.name == "CA"])
    copies = [operator.transform for generator in structure.assemblies[0].generators
              for operator in generator.operators]
    places = np.concatenate([atoms @ np.array(one.mat.tolist()).T + one.vec.tolist()
                             for one in copies])
    places -= places.mean(0)
    places *= 0.28 * size / np.linalg.norm(places, axis=1).max()
    edges = np.arange(size + 1) - size // 2 - 0.5
    counts, _ = np.histogramdd(places[:, ::-1], [edges] * 3)
    found = gaussian_filter(counts, 0.7)
    return np.asarray(np.clip(found / np.quantile(found[found > 0], 0.995), 0, 1))


def phantom(size: int, seed: int = 0, virion: str | None = None) -> Tensor:
    """Shells of random density, and in the middle a virion, (n, n, n) from 0 to 1."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij")
    volume = np.zeros((size,) * 3)
    for _ in range(24):
        axes = rng.uniform(0.05, 0.16, 3) * size
        middle = rng.uniform(-0.36, 0.36, 3) * size
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        away = np.stack([z - middle[0], y - middle[1], x - middle[2]], -1) @ turn / axes
        radius = np.sqrt((away**2).sum(-1))
        thick = 1.5 / axes.min()
        shell = np.clip((thick - np.abs(radius - 1)) * axes.min() + 0.5, 0, 1)
        volume = np.maximum(volume, rng.uniform(0.2, 1.0) * shell)
    far = np.sqrt(x**2 + y**2 + z**2) / (0.22 * size)
    inside = far < 1.35
    spikes = np.cos(9 * np.arctan2(y, x)) * np.cos(9 * np.arctan2(z, np.hypot(x, y)))
    wall = np.exp(-((far - 1) / 0.1)**2 / 2) + 0.6 * np.exp(-((far - 0.72) / 0.06)**2 / 2)
    wall += 0.5 * np.clip(spikes, 0, 1) * np.exp(-((far - 1.18) / 0.07)**2 / 2)
    given = wall / wall.max() if virion is None else assembled(virion, size)
    volume = np.where(inside, given, volume)
    # Nothing beyond the cylinder that every image shows whole.
    return torch.as_tensor(np.where(np.hypot(z, x) < 0.47 * size, volume, 0.0)).float()


def case_of(size: int, noise: float, virion: str | None = None) -> Case:
    """Phantom and images."""
    truth = phantom(size, virion=virion)
    rotations = torch.stack([tilt_rotation(float(angle)) for angle in ANGLES])
    rays = Rays(rotations, torch.zeros(len(ANGLES), 2), (size,) * 3, 1.0, (size, size), 1.0)
    clean = project(truth, rays)
    scale = float(clean.max())
    drawn = np.random.default_rng(1).standard_normal(clean.shape)
    return Case(truth, clean / scale + noise * torch.as_tensor(drawn).float(), scale, rays)


@dataclass(frozen=True)
class Found:
    """What a method gives."""

    volume: Tensor
    numbers: int
    """That were found."""
    grown: Grown | None = None


def _exposures() -> list[Exposure]:
    return [Exposure(Optics(), float(angle), dose=1.0) for angle in ANGLES]


def octree(case: Case, plan: Plan) -> Found:
    """As published."""
    series = Series(case.images, case.rays, torch.ones_like(case.images))
    grown = published(case.images, series, _exposures(), plan, lambda done, of: None, Kept())
    volume = volume_of(grown.field, case.rays.grid) * case.scale
    return Found(volume, grown.field.values.numel(), grown)


def sirt(case: Case, plan: Plan) -> Found:
    """SIRT with total variation at the strength and iteration next to the truth."""
    best, least = case.truth * 0, np.inf
    first = Sirt(case.images * case.scale, case.rays)
    first.step()
    typical = 1.4826 * float(first.volume.diff(dim=2).abs().median())
    for strength in STRENGTHS:
        run = Sirt(case.images * case.scale, case.rays, tv=strength * typical, positive=True)
        for _ in range(STOPS):
            run.step()
            wrong = float((run.volume - case.truth).square().mean())
            if wrong < least:
                best, least = run.volume.clone(), wrong
    return Found(best, best.numel())


def voxel_grid(case: Case, plan: Plan) -> Found:
    """One leaf as large as the phantom: the same fit of a plain grid."""
    size = case.rays.grid[0] + 1 - case.rays.grid[0] % 2
    alone = replace(plan, samples=size, depth=0, start=0, leaves=1,
                    priors=replace(plan.priors, boundary=0.0, non_local=0.0))
    return octree(case, alone)


def without(name: str) -> Callable[[Case, Plan], Found]:
    """The octree without one prior."""
    return lambda case, plan: octree(case, replace(plan, priors=replace(
        plan.priors, **{name: 0.0})))


def even(case: Case, plan: Plan) -> Found:
    """Leaves all of the largest level: nothing is refined."""
    return octree(case, replace(plan, start=plan.depth, leaves=8**plan.depth))


METHODS: dict[str, Callable[[Case, Plan], Found]] = {
    "sirt_tv, stopped by the truth": sirt, "voxels + TV": voxel_grid, "octree": octree,
    "octree without BC": without("boundary"), "octree without CNLC": without("non_local"),
    "uniform octree": even}


def psnr(found: Tensor, truth: Tensor) -> float:
    """As published [dB]."""
    return float(20 * torch.log10(truth.max() / (found - truth).square().mean().sqrt()))


def row(name: str, case: Case, plan: Plan) -> dict:
    """A method and its measures."""
    begun = time.process_time()
    found = METHODS[name](case, plan)
    told = {"method": name, "psnr": psnr(found.volume, case.truth),
            "ssim": structural_similarity(found.volume, case.truth), "numbers": found.numbers,
            "cpu_seconds": time.process_time() - begun}
    if found.grown is not None:
        tree = found.grown.field.tree
        told["leaves"] = len(tree.leaves)
        if len(tree.leaves) > 1:
            told["jump"] = jump(Faces(tree), found.grown.field.values)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--leaves", type=int, default=320)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--passes", type=int, nargs=2, default=(15, 10))
    parser.add_argument("--priors", type=float, nargs=3, default=(4e-4, 2e-4, 1e-6))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--virion", help="file of a structure with an assembly")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    init("cpu", "float32")
    case = case_of(given.size, given.noise, given.virion)
    plan = Plan(given.samples, given.depth, given.leaves, *given.passes, batch=given.batch,
                priors=Priors(*given.priors))
    rows = []
    print("| method | PSNR dB | SSIM | numbers | dB / log2 | jump | leaves | CPU s |\n"
          + 8 * "| --- " + "|")
    for name in given.methods:
        one = row(name, case, plan)
        rows.append(one)
        print(f"| {name} | {one['psnr']:.2f} | {one['ssim']:.3f} | {one['numbers']} | "
              f"{one['psnr'] / np.log2(one['numbers']):.2f} | {one.get('jump', 0):.3f} | "
              f"{one.get('leaves', '')} | {one['cpu_seconds']:.0f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
