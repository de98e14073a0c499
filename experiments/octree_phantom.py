"""The phantom of Wang et al. (2023) and others, their images, and PSNR as published.

Ellipsoidal shells of random density about a virion: of a file of a structure with an assembly such
as 5IRE (Zika), its C-alphas at about a voxel's resolution, else two shells with spikes. 94 images
from -70 to 69.5 degrees, of line integrals, with Gaussian noise relative to the largest.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, project

ANGLES = np.arange(-70, 70, 1.5)
PHANTOMS = ("shells", "sparse", "crowded")


@dataclass(frozen=True)
class Case:
    """What every method is given, and the truth."""

    truth: Tensor
    """(n, n, n), from 0 to 1."""
    images: Tensor
    """Line integrals with noise [voxel], (94, n, n)."""
    sigma: float
    """Of the noise [voxel]."""
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


def sparse(size: int, seed: int = 0) -> Tensor:
    """Seven beads and one vesicle, (n, n, n) from 0 to 1."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij")
    volume = np.zeros((size,) * 3)
    for number in range(8):
        middle = rng.uniform(-0.3, 0.3, 3) * size
        far = np.sqrt((z - middle[0])**2 + (y - middle[1])**2 + (x - middle[2])**2)
        radius = 0.14 * size if number == 0 else 0.03 * size
        away = np.abs(far - radius) - 1.0 if number == 0 else far - radius
        volume = np.maximum(volume, (0.4 if number == 0 else 1.0) * np.clip(0.5 - away, 0, 1))
    return torch.as_tensor(volume).float()


def crowded(size: int, seed: int = 0) -> Tensor:
    """Balls wherever there is room, (n, n, n) from 0 to 1."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij")
    volume = np.zeros((size,) * 3)
    for _ in range(400):
        middle, radius = rng.uniform(-0.5, 0.5, 3) * size, rng.uniform(0.03, 0.06) * size
        box = tuple(slice(max(0, int(m - radius - 1) + size // 2),
                          int(m + radius + 3) + size // 2) for m in middle)
        far = np.sqrt((z[box] - middle[0])**2 + (y[box] - middle[1])**2
                      + (x[box] - middle[2])**2)
        volume[box] = np.maximum(volume[box], rng.uniform(0.3, 1.0)
                                 * np.clip(0.5 - (far - radius), 0, 1))
    return torch.as_tensor(np.where(np.hypot(z, x) < 0.47 * size, volume, 0.0)).float()


def case_of(size: int, noise: float, seed: int = 0, kind: str = "shells",
            virion: str | None = None) -> Case:
    """Phantom and images.

    Args:
        size: of the phantom, along each side.
        noise: of the largest line integral.
        seed: of phantom and noise.
        kind: of PHANTOMS.
        virion: of shells, file of a structure.
    """
    truth = {"shells": lambda: phantom(size, seed, virion), "sparse": lambda: sparse(size, seed),
             "crowded": lambda: crowded(size, seed)}[kind]()
    rotations = torch.stack([tilt_rotation(float(angle)) for angle in ANGLES])
    rays = Rays(rotations, torch.zeros(len(ANGLES), 2), (size,) * 3, 1.0, (size, size), 1.0)
    clean = project(truth, rays)
    sigma = noise * float(clean.max())
    drawn = np.random.default_rng([1, seed]).standard_normal(clean.shape)
    return Case(truth, clean + sigma * torch.as_tensor(drawn).float(), sigma, rays)


def psnr(found: Tensor, truth: Tensor) -> float:
    """As published [dB]."""
    return float(20 * torch.log10(truth.max() / (found - truth).square().mean().sqrt()))


def main() -> None:
    """Nothing to run: see octree.py."""
