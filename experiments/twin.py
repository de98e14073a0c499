"""The twin of one part of a real tilt series (EMPIAR-10499) against the rest of it.

    python -m experiments.twin [FOLDER] [--figures experiments/figures]

The part is the first half of the rows, which look on another place than the others at every tilt.
Both the twin and FakET, whose content is the twin's clean images and whose style is the part, are
judged by the rest: power, variance over mean, and a classifier of tiles. FOLDER keeps what was
made. It takes some ten minutes on one thread and 2 GB.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.twin_judge import BANDS, Apart, apart, banded_power
from tem_taichi.device import as_tensor
from tem_taichi.estimate.bead_poses import Search
from tem_taichi.estimate.bead_series import gold_of
from tem_taichi.estimate.thickness_figure import thickness_figure
from tem_taichi.estimate.thickness_fit import fit_thickness, mean_intensities
from tem_taichi.estimate.twin import NOT_MODELLED, Twin, TwinSettings, make_twin, twin_text
from tem_taichi.estimate.twin_scene import crowd_strength
from tem_taichi.files.mrc import read_image_stack
from tem_taichi.noise.looks import Looks
from tem_taichi.noise.style import Style
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.typed import to_plain
from tem_taichi.series.simulate import simulate
from tem_taichi.specimen.ice_shape import at_knots
from tem_taichi.streams import Key

FIGURES = Path(__file__).parent / "figures"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tilt"
PIXEL, HALF = 10.0, 155
SHOWN = -60.01, -30.01, -0.01, 29.98, 59.98
CUT = (0.0, -1600.0)
"""Middle of the images in the frames that they were cut from [A]."""


def real_series() -> tuple[np.ndarray, pd.DataFrame]:
    table = np.loadtxt(DATA / "empiar10499_00254.tsv")
    images, _ = read_image_stack(DATA / "empiar10499_00254_y0-310.mrc")
    return images, pd.DataFrame({
        "tilt_angle": table[:, 0], "prior_dose": table[:, 1], "defocus": 1e4 * table[:, 2],
        "axis_angle": table[:, 3], "full_frame": table[:, 6], "shift_x": table[:, 4],
        "shift_y": table[:, 5]})


def styled(clean: np.ndarray, style: np.ndarray, angles: np.ndarray, scaled: bool) -> np.ndarray:
    """FakET of clean images in the looks of others."""
    looks = Looks(as_tensor(style), angles)
    like = Style(image=torch.zeros(1, 1), mean=0.0, deviation=1.0, noise=0.0, scaled=scaled)
    return np.stack([looks.law(float(angle), like).sample(as_tensor(image), 1.0, Key(
        0, "noise", n)).cpu().numpy() for n, (image, angle) in enumerate(
            zip(clean, angles, strict=True))])


def parted(row: int) -> tuple[float, float]:
    """Where the middle of a half lies in the whole frame [A], from its first row."""
    return CUT[0], CUT[1] + (row + HALF // 2 - HALF) * PIXEL


def made(folder: Path, part: np.ndarray, table: pd.DataFrame
         ) -> tuple[Twin, np.ndarray, np.ndarray]:
    """The twin of a part, its images and its clean images."""
    begun = time.perf_counter()
    twin = make_twin(part, table, PIXEL, 300.0, TwinSettings(
        cut_from=parted(0), slice_thickness=400.0))
    print(f"fitted in {time.perf_counter() - begun:.0f} s")
    file, scene = folder / "twin.npz", folder / "twin.yaml"
    if file.is_file() and alike(to_plain(load_scene(scene, [])), to_plain(twin.scene)):
        kept = np.load(file)
        return twin, kept["images"], kept["clean"]
    file.unlink(missing_ok=True)
    scene.write_text(twin_text(twin), encoding="utf-8")
    begun = time.perf_counter()
    series = simulate(twin.scene)
    assert series.noise_free is not None
    images, clean = (stack.numpy().astype(np.float32)
                     for stack in (series.images, series.noise_free))
    print(f"simulated in {time.perf_counter() - begun:.0f} s")
    np.savez(file, images=images, clean=clean)
    return twin, images, clean


def alike(one: object, two: object) -> bool:
    """Whether two scenes are the same but for what fits are known to."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    if isinstance(one, float | int) and isinstance(two, float | int):
        return math.isclose(one, two, rel_tol=0.01, abs_tol=0.05)
    return one == two


def row_of(name: str, found: Apart) -> dict[str, object]:
    """What the table has of a series."""
    worst = found.power[int(np.abs(np.log(found.power)).argmax())]
    return {"series": name, "power": found.power.round(2).tolist(), "worst": round(float(worst), 2),
            "variance_over_mean": [round(float(end), 2) for end in (
                found.variance.min(), found.variance.max())],
            "within_10_percent": int((np.abs(found.variance - 1) <= 0.1).sum()),
            "tilts": len(found.variance), "auc": round(found.auc, 3)}


def gold_matched(twin: Twin, images: np.ndarray, part: np.ndarray, table: pd.DataFrame) -> None:
    """Print how the beads that are found in the twin lie to those that it has."""
    search = Search(float(twin.found.beads["diameter"].median()), cut_from=parted(0))
    real, again = (gold_of(stack, table, PIXEL, search) for stack in (part, images))
    one, two = (gold.tracks.finds for gold in (real, again))
    near = [float(np.hypot(two.x[same] - row.x, two.y[same] - row.y).min() * PIXEL)
            for row in one[one["bead"] > 0].itertuples()
            if (same := two["image"] == row.image).any()]
    hits = np.array(near) < 50
    print(f"beads: {len(real.tracks.beads)} tracked in the part, {len(again.tracks.beads)} in its "
          f"twin; of {int((one['bead'] > 0).sum())} finds on tracks of the part {hits.sum()} are "
          f"in the twin, {np.median(np.array(near)[hits]):.0f} A apart in the median; finds in all "
          f"{len(one)} and {len(two)}; diameter {real.tracks.beads['diameter'].median():.0f} and "
          f"{again.tracks.beads['diameter'].median():.0f} A, contrast "
          f"{real.tracks.beads['contrast'].median():.2f} and "
          f"{again.tracks.beads['contrast'].median():.2f}")


def thickness_map(twin: Twin, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Thickness of ice that would take as much from the beam as all layers and the crowd do [A]."""
    def over(knots: torch.Tensor, spacing: float) -> np.ndarray:
        return at_knots(knots, spacing, torch.tensor(x), torch.tensor(y)).numpy()

    ice, density = twin.scene.specimen.ice, twin.found.density
    layers = np.ones(np.broadcast_shapes(x.shape, y.shape))
    if ice.absorption is not None:
        layers = over(torch.tensor(ice.absorption).mean(dim=0), ice.absorption_spacing)
    crowd = layers if density is None else over(torch.tensor(density.knots[0]), density.spacing)
    return ice.thickness * (layers + (crowd_strength(twin.crowd) - 1) * crowd)


def compare_fits(one: Twin, two: Twin) -> None:
    """Print what the part and the rest say of the same: dose, thickness, its map, the crowd."""
    ways = []
    for twin in (one, two):
        x = np.linspace(-3000, 3000, 121)
        # The halves meet where the part's y is greatest and that of the rest least.
        y = np.full(121, (HALF // 2) * PIXEL * (1 if twin is one else -1))
        ways.append(thickness_map(twin, x, y) / twin.lens.mean_free_path)
        print(f"t/L {twin.thickness.ratio:.3f} +- {twin.thickness.ratio_error:.3f}, I0 "
              f"{twin.thickness.intensity:.2f}, noise of {twin.implied_dose:.3f} e-/A^2, crowd "
              f"{100 * twin.crowd.volume_fraction:.2f} %, fading {twin.crowd.damage:.2f}")
    away = ways[1] / ways[0] - 1
    print(f"maps of t/L where the halves meet: correlation {np.corrcoef(ways)[0, 1]:.3f}, they "
          f"differ by {100 * away.std():.1f} % and {100 * away.mean():+.1f} % on average, where "
          f"each varies by {100 * ways[0].std() / ways[0].mean():.1f} %")


def draw(file: Path, stacks: dict[str, np.ndarray], twin: Twin, found: dict[str, Apart],
         angles: np.ndarray) -> None:
    figure = Figure(figsize=(17, 12.5), layout="constrained")
    grid = figure.add_gridspec(len(stacks) + 2, 20, height_ratios=(*[1] * len(stacks), 1, 2.6))
    for column, angle in enumerate(SHOWN):
        at = int(np.abs(angles - angle).argmin())
        low, high = np.percentile(_soft(stacks["part"][at]), [0.3, 99.7])
        for row, (name, stack) in enumerate(stacks.items()):
            axes = figure.add_subplot(grid[row, 4 * column:4 * column + 4])
            axes.imshow(_soft(stack[at]), cmap="gray", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[], title=f"{name} {round(angles[at])}°")
    axes = figure.add_subplot(grid[len(stacks), :])
    half_y, half_x = (side * PIXEL / 2 for side in stacks["part"].shape[1:])
    x, y = np.linspace(-2 * half_x, 2 * half_x, 400), np.linspace(-half_y, half_y, 60)
    thick = thickness_map(twin, x[None, :], y[:, None])
    shown = axes.imshow(thick / 10, extent=(x[0] / 10, x[-1] / 10, y[-1] / 10, y[0] / 10))
    axes.set_title("thickness map of the twin [nm], beads; x, y [nm]")
    beads = twin.found.beads
    axes.plot(beads["x"] / 10, beads["y"] / 10, "o", mfc="none", mec="red")
    figure.colorbar(shown, ax=axes)
    spectra, ratio, tilts, counts = (figure.add_subplot(grid[len(stacks) + 1, at:at + 5])
                                     for at in (0, 5, 10, 15))
    middle = np.sqrt(BANDS[1:] * BANDS[:-1])
    for number, (name, stack) in enumerate(stacks.items()):
        spectra.loglog(middle, banded_power(stack, PIXEL).mean(axis=0), "o-", color=f"C{number}",
                       label=name)
        for at, style in ((int(np.abs(angles).argmin()), "-"), (len(angles) - 1, ":")):
            heights, edges = np.histogram(stack[at], np.arange(0, 70, 1.5), density=True)
            counts.plot((edges[1:] + edges[:-1]) / 2, heights, style, color=f"C{number}")
    spectra.set(xlabel="frequency [1/Å]", title="power of whole images over mean [counts]")
    for name, one in found.items():
        colour = f"C{list(stacks).index(name)}"
        ratio.semilogx(middle, one.power, "o-", color=colour, label=f"{name}: AUC {one.auc:.2f}")
        tilts.plot(angles, one.variance, color=colour)
    for axes, ends in ((ratio, (1 / 1.5, 1.5)), (tilts, (0.9, 1.1))):
        for end in ends:
            axes.axhline(end, color="0.5", linestyle=":")
    ratio.set(xlabel="frequency [1/Å]", title="power over the rest's", ylim=(0, 2))
    tilts.set(xlabel="tilt [deg]", title="variance over mean, over the rest's", ylim=(0.4, 1.6))
    counts.set(xlabel="counts", title="histograms, 0° and (dotted) 60°", yticks=[])
    for axes in (spectra, ratio):
        axes.xaxis.set_minor_formatter(NullFormatter())
    spectra.legend(fontsize=8)
    ratio.legend(fontsize=8)
    figure.savefig(file, dpi=70)


def _soft(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels."""
    ny, nx = (side // 2 * 2 for side in image.shape)
    return image[:ny, :nx].astype(float).reshape(ny // 2, 2, nx // 2, 2).mean(axis=(1, 3))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=Path("twin_of_part"))
    parser.add_argument("--figures", type=Path, default=FIGURES)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    images, table = real_series()
    angles = table["tilt_angle"].to_numpy()
    for name, means in (("full frame", table["full_frame"]), ("half", mean_intensities(images))):
        fit = fit_thickness(means, angles)
        low, high = fit.interval()
        print(f"{name}: t/L = {fit.ratio:.4f} ({low:.4f} to {high:.4f}), normal at "
              f"{fit.normal_angle:.2f} +- {fit.normal_error:.2f} deg, I0 = {fit.intensity:.2f}")
    part, rest = images[:, :HALF], images[:, HALF:]
    twin, simulated, clean = made(chosen.folder, part, table)
    print(*twin.warnings, *twin.assumptions, NOT_MODELLED, sep="\n")
    print(f"dose {twin.nominal_dose:.2f} e-/A^2; the noise is that of {twin.implied_dose:.2f}; the "
          f"ice's layers explain {twin.found.layers.explained:.2f} of what parts of images differ "
          "by beyond noise")
    thickness_figure(twin.thickness).savefig(chosen.figures / "thickness.png")
    gold_matched(twin, simulated, part, table)
    compare_fits(twin, make_twin(rest, table, PIXEL, 300.0, TwinSettings(
        cut_from=parted(HALF), beads=None)))
    stacks = {"rest": rest, "part": part, "twin": simulated,
              "FakET": styled(clean, part, angles, False),
              "FakET, published": styled(clean, part, angles, True)}
    found = {name: apart(stack, rest, PIXEL) for name, stack in stacks.items() if name != "rest"}
    rows = [row_of(name, one) for name, one in found.items()]
    rows.append(row_of("twin against its own part", apart(simulated, part, PIXEL)))
    (chosen.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        print(json.dumps(row))
    for name, one in found.items():
        print(name, " ".join(f"{value:.2f}" for value in one.variance))
    draw(chosen.figures / "twin.png", stacks, twin, found, angles)


if __name__ == "__main__":
    main()
