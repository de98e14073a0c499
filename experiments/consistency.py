"""Whether list, masks and tomogram of labelled samples agree: where templates match best.

    python -m experiments.consistency SET [--samples 4]

Each listed particle's reference, turned as the list says and seen as the tomogram shows it, is
correlated with the tomogram about its place; the peak, to parts of a voxel, is compared with
copick's pick, the middle of the instance mask with that of the reference's. results/consistency.md
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments import matching
from experiments.labelled import Sample, samples
from experiments.runs import RESULTS
from tem_taichi.files.particles import ANGLES, KIND, POSITION, read_placements
from tem_taichi.rotations import euler_to_matrix

REACH = 4
"""How far from its place a particle is looked for [voxel]."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [row for sample in samples(options.folder, "train")[:options.samples]
             for row in offsets(sample)]
    kinds = list(dict.fromkeys(row["kind"] for row in found))
    lines = ["| kind | particles | x | y | z | deviation x, y, z | farthest | turned as listed, "
             "score | turned otherwise | mask's middle x, y, z |", "| --- " * 10 + "|"]
    for kind in [*kinds, "all"]:
        rows = [row for row in found if kind in ("all", row["kind"])]
        lines.append(told(kind, rows))
    (RESULTS / "consistency.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def told(kind: str, rows: list[dict[str, Any]]) -> str:
    """A line of the table: means with their standard errors [voxel]."""
    off = np.array([row["offset"] for row in rows])
    mask = np.array([row["mask"] for row in rows if row["whole"]])
    error = off.std(axis=0, ddof=1) / np.sqrt(len(off))
    means = " | ".join(f"{m:+.3f} ± {e:.3f}" for m, e in
                       zip(off.mean(axis=0), error, strict=True))
    spread = ", ".join(f"{one:.2f}" for one in off.std(axis=0, ddof=1))
    middle = ", ".join(f"{one:+.2f}" for one in mask.mean(axis=0))
    return (f"| {kind} | {len(rows)} | {means} | {spread} | "
            f"{np.linalg.norm(off, axis=1).max():.1f} | "
            f"{np.mean([row['score'] for row in rows]):.2f} | "
            f"{np.mean([row['wrong'] for row in rows]):.2f} | {middle} |")


def picks_of(sample: Sample) -> dict[str, NDArray[np.float64]]:
    """Copick's picks of each kind, (n, 3): x, y, z [voxel], as copick itself reads them."""
    import copick

    root = copick.from_file(str(sample.folder / "copick" / "config.json"))
    return {one.pickable_object_name: np.array(
        [[p.location.x, p.location.y, p.location.z] for p in one.points]).reshape(-1, 3)
        / sample.voxel for one in root.runs[0].get_picks()}


def offsets(sample: Sample) -> list[dict[str, Any]]:
    """Of each particle whose surroundings are in the volume, where its template matches best."""
    table = read_placements(next(sample.folder.glob("*_particles.star")))
    nz, ny, nx = sample.volume.shape
    scene = matching.scene(sample.volume, sample.spread, nx)
    volume = torch.fft.irfftn(scene.spectrum, scene.shape)
    picks, rows = picks_of(sample), []
    truth, rng = sample.truth, np.random.default_rng(0)
    for number, kind in enumerate(sample.kinds, 1):
        ball = 1.1 * sample.radius[number] + 1
        box = 2 * int(np.ceil(ball)) + 2
        reference = matching.coarser(sample.reference(kind), 1.0, box)
        mask = matching.coarser((sample.reference_mask(kind)).astype(np.float32), 1.0, box)
        own = table[table[KIND] == kind]
        turns = euler_to_matrix(*own[list(ANGLES)].to_numpy(np.float64).T)
        places = own[list(POSITION)].to_numpy(np.float64) / sample.voxel + (
            nx // 2, ny // 2, nz // 2)
        for place, turn in zip(places, turns, strict=True):
            gaps = np.linalg.norm(picks[kind] - place, axis=1)
            pick = picks[kind][gaps.argmin()] if len(gaps) else place
            near = np.rint(pick).astype(int)[::-1]
            half = box // 2 + REACH
            if gaps.min(initial=9.0) > 1 or np.any(near < half) or np.any(
                    near + half >= (nz, ny, nx)):
                continue
            part = volume[tuple(slice(at - half, at + half) for at in near)]
            other = euler_to_matrix(*rng.uniform(-180, 180, 3))
            right, wrong = (_scores(part, matching.templates(
                scene, reference, one[None], ball)[0], matching.ball_of(box, ball))
                for one in (turn, other))
            instance = np.argwhere(truth.instances == 1 + np.linalg.norm(
                truth.places - pick[::-1], axis=1).argmin())
            turned_mask = np.argwhere(matching.turned(mask, turn[None])[0].numpy() > 0.5)
            edge = np.any((instance == 0) | (instance == np.array((nz, ny, nx)) - 1))
            middle = instance.mean(axis=0) - (turned_mask.mean(axis=0) - box // 2)
            rows.append({"kind": kind, "offset": _peak(right) + near[::-1] - pick,
                         "score": float(right.max()), "wrong": float(wrong.max()),
                         "mask": middle[::-1] - pick, "whole": not edge})
    return rows


def _scores(part: Tensor, template: Tensor, ball: Tensor) -> Tensor:
    """Scores about the middle of a part of the tomogram, (2 REACH + 1,) * 3."""
    def correlated(one: Tensor, kernel: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(one[None, None], kernel[None, None])[0, 0]

    count = ball.sum()
    norm = correlated(part**2, ball) - correlated(part, ball) ** 2 / count
    return correlated(part, template) / torch.sqrt(norm)


def _peak(scores: Tensor) -> NDArray[np.float64]:
    """Place of the maximum by parabolas, x, y, z from the middle [voxel]."""
    values = scores.numpy().astype(np.float64)
    top = np.array(np.unravel_index(values.argmax(), values.shape))
    found = []
    for axis, at in enumerate(top):
        line = values[tuple(slice(None) if a == axis else top[a] for a in range(3))]
        shift = 0.0
        if 0 < at < len(line) - 1:
            left, middle, right = line[at - 1:at + 2]
            shift = 0.5 * (left - right) / (left - 2 * middle + right)
        found.append(at + shift - len(line) // 2)
    return np.array(found[::-1])


if __name__ == "__main__":
    main()
