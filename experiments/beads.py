"""Gold beads found in simulated series, with their truth, and in a real one.

    python -m experiments.beads [--diameters 60,100,150] [--doses 1,3] [--seeds 7,8]
        [--starts 6] [--plot FILE.png] [--streaks FILE.png]

Scenes have 8 beads at random places in granular ice among 150 globules of protein; the noise of
each dose is drawn on the scene's noise-free images. A find is right within a radius of a bead's
place. The real series is looked at as it is aligned, and from 20 A and 1 degree beside that.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
from matplotlib.figure import Figure

from experiments.alignment import apart
from tem_taichi.estimate.bead_masks import filled, recorded
from tem_taichi.estimate.bead_poses import Search, poses_by_beads
from tem_taichi.estimate.bead_series import Gold, gold_of
from tem_taichi.estimate.bead_tracks import views_of
from tem_taichi.estimate.beads import Beads, beads_of_series
from tem_taichi.estimate.tilt_images import Grid, series_of
from tem_taichi.estimate.tomogram import back_projected
from tem_taichi.files.tilt_tables import read_tilts
from tem_taichi.simulate import main as simulate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tilt"
PIXEL, SHAPE, BEADS = 8.0, (160, 160), 8
CUT = (0.0, -1600.0)
"""Of the real series, see `tilt_images.Grid` [A]."""


def made(folder: Path, diameter: float, seed: int) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Noise-free images, the table of their tilts, and the beads' places [A]."""
    output = folder / f"d{diameter:g}_{seed}"
    assert simulate([
        "name=gold", "specimen=empty", f"shape=[{SHAPE[0]},{SHAPE[1]}]", f"pixel_size={PIXEL}",
        "dose=3", f"seed={seed}", "specimen.damage=0", "specimen.ice.thickness=800",
        f"specimen.particles.bead={{fiducial: {diameter}, count: {BEADS}}}",
        "specimen.particles.crowd={globule: 500, count: 150}", "optics.defocus=30000",
        "tilts={scheme: dose_symmetric, minimum: -60, maximum: 60, step: 10, axis_angle: 25}",
        "tilts.errors={shift: 20, angle: 0.3, axis_angle: 1}", "compute.arch=cpu",
        f"output={output}"]) == 0
    table = starfile.read(output / "gold_particles.star")
    rows = table if isinstance(table, pd.DataFrame) else table["particles"]
    name = next(column for column in rows if rows[column].astype(str).str.contains("bead").any())
    places = rows[rows[name].astype(str).str.contains("bead")][
        [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy(float)
    return (mrcfile.read(output / "gold_noise_free.mrc").astype(float),
            read_tilts(output / "gold_tilts.csv"), places)


def scored(gold: Gold, table: pd.DataFrame, places: np.ndarray, diameter: float) -> dict:
    """Recall and precision of finds of single images and of beads, and their errors."""
    middle, sides = np.array([SHAPE[1] // 2, SHAPE[0] // 2]), np.array([SHAPE[1], SHAPE[0]]) - 1
    seen = views_of(table).project(places) / PIXEL + middle
    # Of beads whose middle is in the image; finds of others, at the rim, are right as well.
    inside = ((seen > 0) & (seen < sides)).all(-1)
    sure = gold.tracks.finds[gold.tracks.finds["false_finds"] <= 0.01]
    hits, right, off, bars = 0, 0, [], []
    for number, image in enumerate(seen):
        mine = sure[sure["image"] == number]
        apart_by = mine[["x", "y"]].to_numpy()[:, None] - image
        near = np.hypot(*apart_by.transpose(2, 0, 1)) < diameter / 2 / PIXEL
        right += int(near.any(1).sum())
        hits += int((near.any(0) & inside[number]).sum())
        for find, bead in zip(*np.nonzero(near), strict=True):
            off.append(apart_by[find, bead])
            bars.append(mine["error"].iloc[find])
    beads = gold.tracks.beads
    left = beads[["x", "y", "z"]].to_numpy()[:, None] - places
    far = np.linalg.norm(left, axis=2)
    good = far < diameter / 2
    of, bead = np.nonzero(good)
    errors = beads[["error_x", "error_y", "error_z"]].to_numpy()[of]
    pulls = left[of, bead] / errors
    return {"recall": hits / inside.sum(), "precision": right / max(len(sure), 1),
            "2-D rms [pixel]": _rms(off), "worst": np.abs(off).max() if off else np.nan,
            "over its bar": _rms(np.array(off) / np.array(bars)[:, None] if off else []),
            "beads": f"{int(good.any(0).sum())} of {len(places)}",
            "false beads": int((~good.any(1)).sum()),
            "3-D rms [A]": _rms(left[of, bead]), "3-D over its bar": _rms(pulls),
            "diameter [A]": float(beads["diameter"].median()) if len(beads) else np.nan}


def _rms(values: np.ndarray | list) -> float:
    """Of each coordinate."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else np.nan


def simulated(diameters: list[float], doses: list[float], seeds: list[int]) -> pd.DataFrame:
    """A row a series."""
    rows = []
    for diameter, seed in itertools.product(diameters, seeds):
        with tempfile.TemporaryDirectory() as folder:
            clean, table, places = made(Path(folder), diameter, seed)
        for dose, known in itertools.product(doses, (True, False)):
            rng = np.random.default_rng(seed)
            images = rng.poisson(np.maximum(clean, 0) / clean.mean() * dose * PIXEL**2 * 0.9)
            gold = gold_of(images.astype(np.float32), table, PIXEL, Search(
                diameter if known else None, depth=600.0))
            rows.append({"diameter": diameter, "seed": seed, "dose [e/A^2]": dose, "told": known,
                         **scored(gold, table, places, diameter)})
            print(pd.DataFrame(rows[-1:]).to_markdown(index=False, floatfmt=".3g"), flush=True)
    return pd.DataFrame(rows)


def recorded_series() -> tuple[np.ndarray, pd.DataFrame]:
    """EMPIAR-10499 and its table."""
    images = mrcfile.read(DATA / "empiar10499_00254_y0-310.mrc").astype(np.float32)
    table = read_tilts(DATA / "empiar10499_00254.tsv")
    return images, table.assign(shift_x=table["axis_offset_x"], shift_y=table["axis_offset_y"])


def real(starts: int) -> None:
    """EMPIAR-10499: its beads, and its alignment by them from what is given and from beside it.

    Args:
        starts: draws of what it begins beside.
    """
    images, table = recorded_series()
    search = Search(100.0, cut_from=CUT)
    finds, _ = beads_of_series(images, 10.0, Beads(100.0), recorded(images))
    for start in range(starts + 1):
        rng, given = np.random.default_rng(start), table.copy()
        if start:
            given[["shift_x", "shift_y"]] += rng.normal(0, 20, (len(table), 2))
            given["axis_angle"] += rng.choice((-1, 1))
        found = poses_by_beads(finds, given, 10.0, images.shape[1:], search)
        assert found.fit is not None
        if not start:
            first = found
        tilts, beads = found.fit.tilts, found.tracks.beads
        off, bars = apart(tilts, first.tilts), tilts.filter(regex="shift_._error").to_numpy()
        print(f"start {start}: {len(beads)} beads of {(found.tracks.finds['bead'] > 0).sum()} "
              f"finds; residual {found.residual_before:.1f} A as given, "
              f"{beads['residual'].median():.1f} A after; axis "
              f"{tilts['axis_angle'][0] - table['axis_angle'][0]:+.3f} deg from that of the table "
              f"(bar {tilts['axis_angle_error'][0]:.3f}); shifts from those of start 0: "
              f"{np.sqrt((off**2).mean(0)).round(2)} A, at most {np.abs(off).max():.1f} (median "
              f"bar {np.median(bars, 0).round(2)})", *found.fit.doubts, sep="\n", flush=True)
    print(first.tracks.beads.round(2).to_markdown(index=False))


def draw(rows: pd.DataFrame, plot: str) -> None:
    """Recall and errors over the diameter."""
    figure = Figure(figsize=(11, 3.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 4)
    for (dose, told), mine in rows.groupby(["dose [e/A^2]", "told"]):
        label = f"{dose:g} e/A$^2$, diameter {'told' if told else 'not told'}"
        style = {"color": f"C{int(dose > 1)}", "marker": "o" if told else "x",
                 "linestyle": "-" if told else ":"}
        mean = mine.groupby("diameter").mean(numeric_only=True)
        for axes, name in zip(panels, ("recall", "precision", "2-D rms [pixel]", "3-D rms [A]"),
                              strict=True):
            axes.plot(mean.index, mean[name], label=label, **style)
            axes.set(xlabel="diameter [A]", title=name)
    for number, axes in enumerate(panels):
        axes.set_ylim(0, 1.03 if number < 2 else 1.1 * axes.get_ylim()[1])
    panels[0].legend(fontsize=7)
    figure.savefig(plot)


def streaks(plot: str) -> None:
    """Slices of the real series' tomogram with gold and without."""
    images, table = recorded_series()
    gold = gold_of(images, table, 10.0, Search(100.0, cut_from=CUT))
    grid = Grid(3600.0, 1, CUT)
    figure = Figure(figsize=(12, 10.5), dpi=90, layout="constrained")
    axes = figure.subplots(3, 2)
    for column, number in ((0, 20), (1, 0)):
        image = images[number]
        axes[0, column].imshow(image, cmap="gray", origin="lower", vmin=image.mean() * 0.6,
                               vmax=image.mean() * 1.4)
        for one in gold.places[gold.places["image"] == number].itertuples():
            axes[0, column].plot(one.x, one.y, "o", markersize=11, fillstyle="none",
                                 color="tab:green" if one.bead else "tab:red")
        axes[0, column].set_title(f"{table['tilt_angle'][number]:.0f} deg: finds (red: of no bead)")
    depth, row = round(1800 / 10 - 100.0), round(155 + 48.8)
    without = filled(images, gold.mask, 5.0)
    for line, name in ((1, "slice at z = -1000 A"), (2, "slice across it, y = 488 A")):
        limits = None
        for column, stack in enumerate((images, without)):
            volume = back_projected(series_of(stack, gold.tilts, 10.0, grid), 40.0).volume.numpy()
            cut_out = volume[depth] if line == 1 else volume[:, row]
            limits = limits or tuple(np.percentile(cut_out, (1, 99)))
            axes[line, column].imshow(cut_out, cmap="gray_r", origin="lower", vmin=limits[0],
                                      vmax=limits[1])
            axes[line, column].set_title(f"{name}, {'gold filled' if column else 'as it is'}")
    for one in axes.ravel():
        one.set(xticks=[], yticks=[])
    figure.savefig(plot)


def main() -> None:
    """Print the tables; draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--diameters", default="60,100,150")
    parser.add_argument("--doses", default="1,3")
    parser.add_argument("--seeds", default="7,8")
    parser.add_argument("--starts", type=int, default=6, help="draws beside the real alignment")
    parser.add_argument("--plot")
    parser.add_argument("--streaks")
    given = parser.parse_args()
    diameters, doses, seeds = ([float(one) for one in text.split(",") if one]
                               for text in (given.diameters, given.doses, given.seeds))
    if diameters:
        rows = simulated(diameters, doses, [int(seed) for seed in seeds])
        print(rows.to_markdown(index=False, floatfmt=".3g"))
        if given.plot:
            draw(rows, given.plot)
    if DATA.is_dir():
        real(given.starts)
        if given.streaks:
            streaks(given.streaks)


if __name__ == "__main__":
    main()
