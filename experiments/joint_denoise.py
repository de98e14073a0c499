"""Tilts of one specimen denoised with the others and one by one, on simulated series.

    python -m experiments.joint_denoise FOLDER [--cases cell:1 filaments:0 ...] [--show]

Series are those of `cell_series`, made in the folder where they are not there: 41 tilts of 200 nm
of granular ice with CTF, damage and Poisson noise. Of each series the tilts of one fold of four, 10
or 11 from -57 to 51 degrees, are estimated and compared with their images without noise. Cases that
the results have are not computed again; --show makes table and figure of them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.cell_series import CellSeries, cell_series
from experiments.panels import WIDTH, letter, save
from experiments.runs import RESULTS
from tem_taichi.device import as_tensor, init
from tem_taichi.estimate.denoise import PRIORS
from tem_taichi.estimate.denoise_tilt import Tilt, denoise_tilt
from tem_taichi.estimate.noise_law import blurred
from tem_taichi.estimate.other_tilts import Noise, full_size, predicted
from tem_taichi.estimate.recording import record
from tem_taichi.estimate.tilt_images import Grid, in_order, series_of
from tem_taichi.inverse.measures import affine_rmse, correlation, structural_similarity

LINES, TABLE = RESULTS / "joint_denoise.jsonl", RESULTS / "joint_denoise.md"
FIGURE = Path(__file__).parent / "figures" / "joint_denoise.png"
CASES = ("cell:0", "cell:1", "filaments:0", "beads:0")
SEEN = ("cell:0",)
"""Looked at while the method was made; nothing was tuned to the others."""
BIN, FOLDS, FOLD = 2, 4, 1
RANGES = ((0, 20), (20, 40), (40, 60))
MEASURES = {"correlation": correlation, "rmse": affine_rmse, "ssim": structural_similarity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="SPECIMEN:SEED")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    init("cpu", "float32")
    done = {row["case"] for row in read()}
    for case in given.cases if not given.show else ():
        if case not in done:
            rows, pictures = judged(series_in(given.folder, case), case)
            np.savez(given.folder / f"{case.replace(':', '')}_denoised.npz", **pictures)
            with open(LINES, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    if given.show:
        TABLE.write_text(table(read()), encoding="utf-8")
        save(figure(given.folder, read()), FIGURE)
        print(table(read()))


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text("utf-8").splitlines()] \
        if LINES.is_file() else []


def series_in(folder: Path, case: str) -> CellSeries:
    specimen, seed = case.split(":")
    return cell_series(folder / f"{specimen}{seed}.npz", specimen, int(seed))


def judged(given: CellSeries, case: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A row for each tilt of the fold; and pictures of that nearest to 0 degrees."""
    begun = time.process_time()
    series = series_of(given.images, given.tilts, given.pixel_size, Grid(
        2000.0, BIN, margin=given.images.shape[2] * given.pixel_size))
    recordings = [record(as_tensor(image[None])) for image in given.images]
    noise = Noise([one.law for one in recordings],
                  [float(one.electrons.mean()) for one in recordings], BIN)
    order = in_order(series)
    own = sorted(order[FOLD::FOLDS])
    known = predicted(series, noise, sorted(set(order) - set(own)), own)
    prediction = time.process_time() - begun
    rows, pictures = [], {}
    angles = given.tilts["tilt_angle"].to_numpy()
    for number, contrast in zip(own, known, strict=True):
        tilt = denoise_tilt(recordings[number], full_size(-contrast, given.images.shape[1:], BIN),
                            PRIORS)
        truth = blurred(as_tensor(given.noise_free[number]), recordings[number].law)
        rows.append({"case": case, "angle": float(angles[number]),
                     "prediction_seconds": prediction, **row_of(tilt, truth)})
        if number == min(own, key=lambda one: abs(angles[one])):
            pictures = {"recorded": given.images[number], "alone": tilt.alone.electrons.numpy(),
                        "from others": (tilt.part + tilt.recording.electrons.mean()).numpy(),
                        "with others": tilt.chosen.electrons.numpy(), "truth": truth.numpy()}
    return rows, pictures


def row_of(tilt: Tilt, truth: Tensor) -> dict[str, Any]:
    """What the estimates of a tilt have in common with it."""
    found = {"recorded": tilt.recording.electrons, "from_others": tilt.part,
             "alone": tilt.alone.electrons, "joint": tilt.chosen.electrons}
    return {"is_joint": tilt.is_joint, "share": tilt.from_others,
            "priors": [tilt.alone.name, tilt.joint.name],
            "mean": float(tilt.chosen.electrons.mean() / truth.mean()),
            **{name: {how: float(measure(one, truth)) / (
                float(truth.std()) if name == "rmse" else 1.0) for how, one in found.items()}
               for name, measure in MEASURES.items()}}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over tilts, in Markdown."""
    lines = ["| series | tilts | recorded | from others | alone | joint | RMSE alone | joint | "
             "SSIM alone | joint | share |", "| --- " * 11 + "|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        for low, high in (*RANGES, (0, 90)):
            some = [row for row in rows if row["case"] == case and low <= abs(row["angle"]) < high]

            def mean(name: str, how: str, some: list[dict[str, Any]] = some) -> str:
                return f"{np.mean([row[name][how] for row in some]):.3f}"

            lines.append("| " + " | ".join([
                case + (" (seen)" if case in SEEN else ""),
                "all" if high == 90 else f"{low} to {high}",
                *(mean("correlation", how) for how in ("recorded", "from_others", "alone",
                                                       "joint")),
                mean("rmse", "alone"), mean("rmse", "joint"), mean("ssim", "alone"),
                mean("ssim", "joint"), f"{np.mean([row['share'] for row in some]):.2f}"]) + " |")
    return "\n".join(lines) + "\n\n" + verdict(rows)


def verdict(rows: list[dict[str, Any]]) -> str:
    """How often the others help."""
    wins = {name: sum((row[name]["joint"] < row[name]["alone"]) == (name == "rmse")
                      for row in rows if row[name]["joint"] != row[name]["alone"])
            for name in MEASURES}
    left = [1 - (1 - row["correlation"]["joint"]**2) / (1 - row["correlation"]["alone"]**2)
            for row in rows]
    off = max(abs(row["mean"] - 1) for row in rows)
    return (f"Of {len(rows)} tilts {sum(row['is_joint'] for row in rows)} are denoised with the "
            f"others; correlation is better in {wins['correlation']}, RMSE in {wins['rmse']}, SSIM "
            f"in {wins['ssim']}. Of the contrast's power that is wrong tilt by tilt, the others "
            f"take away {np.median(left):.0%} (median; {min(left):.0%} to {max(left):.0%}). Mean "
            f"counts are off by at most {off:.2%}. RMSE is after the best scale and offset, over "
            "the truth's deviation; share is that of the contrast that comes from others.\n")


def figure(folder: Path, rows: list[dict[str, Any]]) -> Figure:
    """One tilt in five ways, of two series; and correlation over the tilt."""
    made = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    cases = [case for case in CASES if case not in SEEN]
    axes = made.subplot_mosaic([list("abcde"), list("fghij"), list("kkkkk")],
                               height_ratios=[1, 1, 1.1])
    for places, case in zip(("abcde", "fghij"), cases, strict=False):
        with np.load(folder / f"{case.replace(':', '')}_denoised.npz") as pictures:
            for place, name in zip(places, pictures, strict=True):
                image = pictures[name]
                low, high = np.percentile(image, (0.5, 99.5))
                axes[place].imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
                axes[place].set_title(f"{case}: {name}" if place in "af" else name, fontsize=7)
                axes[place].set_axis_off()
    for case in dict.fromkeys(row["case"] for row in rows):
        some = sorted((row for row in rows if row["case"] == case), key=lambda row: row["angle"])
        angles = [row["angle"] for row in some]
        line, = axes["k"].plot(angles, [row["correlation"]["joint"] for row in some], "o-",
                               markersize=3, linewidth=1, label=f"{case}, with others")
        axes["k"].plot(angles, [row["correlation"]["alone"] for row in some], "--", linewidth=1,
                       color=line.get_color(), label="alone")
    axes["k"].set(xlabel="tilt [deg]", ylabel="correlation with the truth")
    axes["k"].grid(alpha=0.3)
    axes["k"].legend(fontsize=6, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    letter([axes[name] for name in "afk"])
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
