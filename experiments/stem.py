"""Noisy scanned images to 3-D: networks and voxels, with and without a learned law of noise.

    python -m experiments.stem [--only main focus] [--seeds 3] [--size 24] [--step 5] [--cone 60]

The comparison of Kniesel et al. (2022) on the phantom of `octree_phantom`: bright-field images
from -70 to 70 degrees whose counts are electrons of random charge, 25 of the beam in a pixel. PSNR,
MSE and DSSIM, (1 - SSIM) / 2, of the density and of the clean images of tilts that no method saw.
Rows that the file of lines has are not made again.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.octree_phantom import phantom
from experiments.runs import RESULTS
from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.stem_fit import Along, Found, Images, Plan, fitted, split
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram import iterated
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.measures import correlation, structural_similarity
from tem_taichi.inverse.tomography import weighted_back_projection
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.implicit import small
from tem_taichi.specimen.rays import Rays, project

LINES, TABLE = RESULTS / "stem.jsonl", RESULTS / "stem.md"
FIGURE = RESULTS.parent / "figures" / "stem.png"
VOXEL, BEAM, CHARGE, DARKEST, HELD = 10.0, 100.0, 4.0, 2.0, 8
"""[A]; counts of the beam in a pixel, of an electron; largest line integral; one of so many images
is held out."""
NET = Plan(passes=60, warm=20, law_steps=150)
GRID = replace(NET, specimen="voxels")


@cache
def case(size: int, step: float, seed: int, cone: float = 0.0) -> tuple[Images, Tensor, Tensor]:
    """Noisy images, the clean ones and the density [1/A]."""
    angles = np.arange(-70, 70.001, step)
    rays = Rays(torch.stack([tilt_rotation(float(a)) for a in angles]),
                torch.zeros(len(angles), 2), (size,) * 3, VOXEL, (size, size), VOXEL)
    truth = phantom(size, seed)
    density = truth * (DARKEST / float(project(truth, rays).max()))
    exposures = [Exposure(tilt_angle=float(a), dose=BEAM / VOXEL**2) for a in angles]
    images = Images(torch.zeros(len(angles), size, size), rays, exposures,
                    STEM((size, size), VOXEL, convergence=cone))
    clean = images.expected(density)
    rng = np.random.default_rng([seed, 7])
    electrons = rng.poisson((clean / CHARGE).numpy())
    counts = CHARGE * rng.gamma(np.maximum(electrons, 1e-9)) + rng.standard_normal(clean.shape)
    return replace(images, counts=torch.as_tensor(counts).float()), clean, density


def logarithms(images: Images) -> Tensor:
    """Line integrals of counts, as the linear methods take them."""
    return -(images.counts / BEAM).clamp(min=0.02).log()


def denoised(images: Images, clean: Tensor) -> Images:
    """Non-local means of each image, of the strength that is nearest to the truth: a favour."""
    from skimage.restoration import denoise_nl_means

    sigma = float((images.counts - clean).std())
    best = images.counts
    for strength in (0.4, 0.6, 0.8, 1.0, 1.3):
        made = torch.stack([torch.as_tensor(denoise_nl_means(
            one.numpy(), patch_size=3, patch_distance=5, h=strength * sigma, sigma=sigma,
            fast_mode=True, preserve_range=True)) for one in images.counts]).float()
        if (made - clean).norm() < (best - clean).norm():
            best = made
    return replace(images, counts=best)


def network(plan: Plan, images: Images, clean: Tensor, seed: int) -> Found:
    return fitted(images, replace(plan, seed=seed), HELD, lambda done, of: None, Kept())


def of_denoised(plan: Plan, images: Images, clean: Tensor, seed: int) -> Found:
    return network(plan, denoised(images, clean), clean, seed)


def of_clean(plan: Plan, images: Images, clean: Tensor, seed: int) -> Found:
    return network(plan, replace(images, counts=clean), clean, seed)


def wbp(images: Images, clean: Tensor, seed: int, smooth: bool = False) -> Found:
    shown, _ = split(images, HELD)
    given = denoised(images, clean) if smooth else images
    some = given.some(shown)
    return Found(weighted_back_projection(logarithms(some), some.rays, 2 * VOXEL), None, None, 0)


def sirt_tv(images: Images, clean: Tensor, seed: int) -> Found:
    shown, _ = split(images, HELD)
    some = images.some(shown)
    lines = logarithms(some)
    made = iterated(Series(lines, some.rays, torch.ones_like(lines)), 40, None, True, HELD,
                    lambda done, of: None, Kept())
    return Found(made.volume, None, None, made.iterations)


Method = Callable[[Images, Tensor, int], Found]
MAIN: dict[str, Method] = {
    "WBP": wbp, "WBP, denoised": partial(wbp, smooth=True), "SIRT-TV": sirt_tv,
    "network, L2": partial(network, replace(NET, loss="l2")),
    "network, L1": partial(network, replace(NET, loss="l1")),
    "network, L2, denoised": partial(of_denoised, replace(NET, loss="l2")),
    "network, L2, clean images (bound)": partial(of_clean, replace(NET, loss="l2", passes=120)),
    "network, flow": partial(network, NET),
    "network + TV, L2": partial(network, replace(NET, loss="l2", tv=None)),
    "network + TV, flow": partial(network, replace(NET, tv=None)),
    "voxels, L2": partial(network, replace(GRID, loss="l2")),
    "voxels + TV, L2": partial(network, replace(GRID, loss="l2", tv=None)),
    "voxels, flow": partial(network, GRID),
    "voxels + TV, flow": partial(network, replace(GRID, tv=None)),
}
BALANCE: dict[str, Method] = {
    "flow from the start": partial(network, replace(NET, warm=0, passes=80)),
    "flow that stays as learned": partial(network, replace(NET, law_rate=0.0)),
    "flow, a tenth of the rate": partial(network, replace(NET, law_rate=0.1)),
    "flow, twice the rate": partial(network, replace(NET, law_rate=2.0)),
    "flow and network in three turns": partial(network, replace(NET, turns=3)),
}
CAPACITY: dict[str, Method] = {
    **{f"{width} features, {loss}": partial(network, replace(
        NET, loss=loss, network=small(24, width))) for width in (16, 32, 128)
       for loss in ("l2", "flow")},
    **{f"flow of {2 * n} layers": partial(network, replace(NET, law=(n, n, 16)))
       for n in (1, 2, 8)}}
MANY = replace(NET, passes=300, warm=100, patience=40, rate=0.001)
LONGER: dict[str, Method] = {
    "network, L2": partial(network, replace(MANY, loss="l2")),
    "network, flow": partial(network, MANY),
    "network + TV, L2": partial(network, replace(MANY, loss="l2", tv=3.0)),
    "network + TV, flow": partial(network, replace(MANY, tv=3.0)),
}
"""Five times the passes of `main` at a third of the rate."""
LINES_OF: dict[str, Method] = {
    "network, L2, 16 points of each of two networks": partial(network, replace(
        NET, loss="l2", along=Along(512, 16, 16))),
    "network, L2, 32 points of one": partial(network, replace(
        NET, loss="l2", along=Along(512, 32, 0))),
}
"""Steps of 512 rays in place of 8 whole images of the grid."""
FOCUS: dict[str, tuple[float, float, bool]] = {
    "no cone": (0.0, 0.0, False), "cone known": (1.0, 1.0, False),
    "cone ignored": (1.0, 0.0, False), "cone found": (1.0, 1 / 3, True)}
"""Of the beam's convergence: the images' part, that which the fit is told, and whether it is
found."""


def in_focus(name: str, images: Images, clean: Tensor, seed: int) -> Found:
    _, told, free = FOCUS[name]
    there = float(images.instrument.convergence)
    given = replace(images, counts=clean, instrument=replace(images.instrument,
                                                             convergence=told * there))
    return network(replace(NET, loss="l2", passes=120, free_cone=free), given, clean, seed)


PARTS: dict[str, dict[str, Method]] = {
    "main": MAIN, "longer": LONGER, "balance": BALANCE, "capacity": CAPACITY,
    "rays": LINES_OF,
    "focus": {name: partial(in_focus, name) for name in FOCUS}}


def cone_of(part: str, name: str, cone: float) -> float:
    """Convergence of the beam of the images [mrad]."""
    return FOCUS[name][0] * cone if part == "focus" else 0.0


def row(part: str, name: str, size: int, step: float, seed: int, cone: float) -> dict[str, Any]:
    """A method's measures."""
    images, clean, truth = case(size, step, seed, cone)
    begun = time.process_time()
    found = PARTS[part][name](images, clean, seed)
    spent = time.process_time() - begun
    shown, held = split(images, HELD)
    # What is compared is the image without the cone: that of the density alone.
    sharp = replace(images, instrument=replace(images.instrument, convergence=0.0))
    with torch.no_grad():
        seen, wanted = (sharp.some(held).expected(volume.clamp(min=0)) / BEAM
                        for volume in (found.volume, truth))
        fit = sharp.some(shown).expected(found.volume.clamp(min=0))
        hidden = sharp.some(shown).expected(truth)
    top = float(truth.max())
    left = images.some(shown).counts - fit
    return {"part": part, "method": name, "size": size, "tilts": len(clean), "seed": seed,
            "psnr2": psnr(seen, wanted), "mse2": float((seen - wanted).square().mean()),
            "dssim2": float(np.mean([(1 - structural_similarity(a, b)) / 2
                                     for a, b in zip(seen, wanted, strict=True)])),
            "psnr3": psnr(found.volume, truth),
            "mse3": float(((found.volume - truth) / top).square().mean()),
            "dssim3": (1 - structural_similarity(found.volume, truth)) / 2,
            "eaten": float(correlation(left, hidden)), "steps": found.steps, "tv": found.tv,
            "cone": found.cone, "images_cone": cone, "cpu_seconds": spent}


def psnr(found: Tensor, truth: Tensor) -> float:
    """Of the truth's range [dB]."""
    span = float(truth.max() - truth.min())
    return float(20 * torch.log10(span / (found - truth).square().mean().sqrt()))


def table(rows: list[dict[str, Any]]) -> str:
    """Means and deviations over seeds, of each part at each size."""
    text = ""
    for part, size in sorted({(one["part"], one["size"]) for one in rows},
                             key=lambda pair: ([*PARTS].index(pair[0]), pair[1])):
        names = [name for name in PARTS[part] if any(
            (one["part"], one["size"], one["method"]) == (part, size, name) for one in rows)]
        text += (f"\n### {part}, {size}^3\n\n| method | PSNR 2D, dB | MSE 2D x 1e3 | DSSIM 2D |"
                 " PSNR 3D, dB | MSE 3D x 1e3 | DSSIM 3D | residual . truth | cone, mrad | seeds |"
                 " CPU s |\n"
                 + "| --- " * 11 + "|\n")
        for name in names:
            some = [one for one in rows
                    if (one["part"], one["size"], one["method"]) == (part, size, name)]
            cells = []
            for key, scale, digits in (("psnr2", 1, 2), ("mse2", 1e3, 2), ("dssim2", 1, 3),
                                       ("psnr3", 1, 2), ("mse3", 1e3, 2), ("dssim3", 1, 3),
                                       ("eaten", 1, 3), ("cone", 1, 1)):
                values = np.array([one[key] for one in some]) * scale
                cells.append(f"{values.mean():.{digits}f} ± {values.std():.{digits}f}")
            spent = np.mean([one["cpu_seconds"] for one in some])
            text += f"| {name} | {' | '.join(cells)} | {len(some)} | {spent:.0f} |\n"
    return text.lstrip()


def figure(size: int, step: float) -> None:
    """A slice of each method of the main table, and one along the beam with the missing wedge."""
    import matplotlib.pyplot as plt

    images, clean, truth = case(size, step, 0)
    names = ["WBP", "SIRT-TV", "voxels, L2", "voxels + TV, flow", "network, L2", "network, flow",
             "network, L2, clean images (bound)"]
    volumes = {"truth": truth} | {name: MAIN[name](images, clean, 0).volume for name in names}
    figure, axes = plt.subplots(2, len(volumes), figsize=(2 * len(volumes), 4.3))
    top = float(truth.max())
    for column, (name, volume) in zip(axes.T, volumes.items(), strict=True):
        for place, plane in zip(column, (volume[size // 2], volume[:, size // 2]), strict=True):
            place.imshow(plane.numpy(), cmap="gray", vmin=0, vmax=top, origin="lower")
            place.set_axis_off()
        column[0].set_title(name.replace(", clean", ",\nclean"), fontsize=8)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*PARTS], nargs="+", default=[*PARTS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=24)
    parser.add_argument("--step", type=float, default=5.0)
    parser.add_argument("--cone", type=float, default=60.0,
                        help="of focus: half of the beam's opening angle [mrad]")
    parser.add_argument("--figure", action="store_true", help="only draw")
    given = parser.parse_args()
    init("cpu", "float32")
    if given.figure:
        figure(given.size, given.step)
        return
    rows = [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []
    keys = ("part", "method", "size", "seed", "images_cone")
    there = {tuple(one[key] for key in keys) for one in rows}
    for seed in range(given.seeds):
        for part in given.only:
            for name in PARTS[part]:
                cone = cone_of(part, name, given.cone)
                if (part, name, given.size, seed, cone) in there:
                    continue
                rows.append(row(part, name, given.size, given.step, seed, cone))
                with open(LINES, "a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print({key: value if isinstance(value, str) else round(value, 4)
                       for key, value in rows[-1].items()}, flush=True)
    text = table(rows)
    TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
