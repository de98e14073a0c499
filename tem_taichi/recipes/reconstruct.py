"""A tomogram of a tilt series, by weighted back-projection, SIRT or a fit of the potential.

Its frame is the specimen's, x and y as in the untilted image; matter is positive. Its unit is
contrast per length [1/A], what each A takes from the mean of an image, or of a fit the potential
relative to the surroundings [V].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tem_taichi import checks
from tem_taichi.estimate.alignment import Alignment
from tem_taichi.estimate.bead_poses import Search
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.micrographs import Micrographs
from tem_taichi.estimate.octree_figure import tree_figure
from tem_taichi.estimate.octree_fit import Grown, Imaging, Settings
from tem_taichi.estimate.octree_fit import fitted as octree_fitted
from tem_taichi.estimate.octree_tree import Growth, most_memory, volume_of
from tem_taichi.estimate.scans import Scan, imaging_of, scan_of
from tem_taichi.estimate.shift_fit import fitted_shifts
from tem_taichi.estimate.stem_fit import unit_of
from tem_taichi.estimate.tilt_images import Grid, Series, agreement, halves_of, series_of
from tem_taichi.estimate.tomogram import Tomogram, back_projected, iterated
from tem_taichi.estimate.tomogram_fit import defoci_of, exposures_of, fitted, model_of
from tem_taichi.estimate.tomogram_model import MODELS, Explained, Lens
from tem_taichi.estimate.volume_figure import planes_figure, slices
from tem_taichi.files.io import read_images
from tem_taichi.files.unfinished import part_key, unfinished_folder
from tem_taichi.machine import check_memory
from tem_taichi.recipes.alignment import (
    alignment_numbers,
    check_align,
    finest_of,
    refined,
)
from tem_taichi.recipes.beads import without_gold
from tem_taichi.recipes.ctf_tables import LENS
from tem_taichi.recipes.input import aligned_table, check_alignment, images_of
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.scanned import (
    UNIT,
    ScannedRecipe,
    check_learned,
    is_learned,
    noise_taken,
    potential_of,
    tomogram_of,
)
from tem_taichi.recipes.scanned import taken as scan_taken

_METHODS = ("wbp", "sirt", "sirt_tv", "gradient")


@dataclass(frozen=True)
class ReconstructRecipe(ScannedRecipe):
    """A tilt series, its alignment, and the method."""

    method: str = "wbp"
    """wbp, weighted back-projection; sirt; sirt_tv, with total variation; or gradient, the
    potential whose images by the microscope's own model are the most probable, with total
    variation"""
    thickness: float = 3000.0
    """of the tomogram along the beam [A]"""
    bin: int = 1
    """pixels a voxel; images are averaged"""
    axis_angle: float | None = None
    """of the tilt axis from +y, counter-clockwise [deg]; null = from the table of angles"""
    shifts: tuple[str, str] = ("shift_x", "shift_y")
    """columns of the table of angles that have the images' shifts [A]; 0 where there are none"""
    align: tuple[str, ...] = ()
    """what is refined of the alignment before the tomogram is made, by all images together: any of
    shifts, axis, one for all images, and tilts, the angle of each; written to aligned.csv"""
    align_by: str = "auto"
    """of align: beads, gold that is found in the images, or that of `beads` where it is a file;
    specimen, all that is in the images; or auto, beads where there are, and the specimen as well
    where they leave a shift in doubt by 2 A or more"""
    align_within: float = 20.0
    """of align and refine: how far the shifts that are given may be off, as a standard deviation
    [A]; the axis is taken for known to 3 deg, tilts to 1 deg"""
    align_to: float | None = None
    """of align: finest details that are compared [A]; null = 40, or 3 pixels or the first zero of
    the contrast transfer function, as far as the table has defoci, where these are coarser"""
    align_rounds: int = 2
    """of align by the specimen: how often, at the end, shifts are corrected by what a
    reconstruction from other tilts predicts of each image; 0 = never"""
    refine: bool = False
    """of gradient: whether shifts are refined in one fit with a specimen, by the same model, from
    those that are given or align has found, with align_within as their deviation or, of gold, their
    errors; the axis is held. Written to aligned.csv, whose errors stay those before"""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """where the middle of the images lies in the frames that they were cut from, x and y from their
    middle [A], through which the tilt axis runs"""
    margin: float | None = None
    """of all but wbp: beside the field across the tilt axis, on either side [A], where what tilted
    images show beyond the field is put and then cut off; null = as far as the most tilted image
    sees, at most another field"""
    mask: str | None = None
    """MRC or TIFF file of pixels that are used, not 0: one image for all or one for each"""
    beads: str | None = None
    """auto, or text of IMOD's model2point: gold beads, left out and filled with the mean of what is
    about them; null = left as they are. recipe=beads finds them with more settings"""
    bead_diameter: float | None = None
    """of them [A]; null = as the images say, where beads=auto"""
    resolution: float = 0.0
    """of wbp: details of this size have half of their contrast left [A]; 0 = all have all"""
    iterations: int = 50
    """at most; of gradient, rounds in which total variation gives back the contrast that it took,
    but passes through all images where a network or a law of noise is learned"""
    tv: float | None = None
    """strength of the total variation, of sirt_tv [1/A], null = that which explains the images held
    out best; of each round of gradient [1/V], null = that to which noise is faint"""
    positive: bool = False
    """of all but wbp: whether no voxel may be below 0, lighter than the mean"""
    held_out: int = 8
    """of all but wbp: one image of so many is left out at first and tells when to stop; 0 = none"""
    voltage: float = 300.0
    """of gradient [kV]; the defoci are from the table of angles"""
    spherical_aberration: float = 2.7
    """of gradient [mm]"""
    amplitude_contrast: float = 0.07
    """of gradient [1]"""
    model: str = "projection"
    """of gradient: projection, all of the specimen in one plane of focus, or multislice, each of it
    in its own, for what is thicker than the focus is deep"""
    slice_thickness: float | None = None
    """of model=multislice [A]; null = the thickest that leaves 1 % of the contrast in error"""
    specimen: str = "voxels"
    """of gradient: voxels, a potential of any sign; octree, one above the surroundings' on small
    grids that are split where the images ask for it (experimental); or implicit, one above the
    surroundings' that a network knows at every point. With instrument=stem none is below"""
    leaves: int = 320
    """of specimen=octree: small grids, at most"""
    samples: int = 12
    """of specimen=octree: along each side of a small grid, its faces included"""
    depth: int = 3
    """of specimen=octree: how often a grid is split, at most; the last has a sample a voxel"""
    damage: float = 1.0
    """of gradient: radiation damage by prior_dose and dose of the table of angles, if
    it has both: 1 = as measured, 0 = none"""
    halves: bool = False
    """whether to reconstruct every other image, in the order in which they were taken, apart as
    well, and to correlate the halves in Fourier shells"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("method", self.method, _METHODS)
        checks.positive("thickness", self.thickness, "A")
        checks.whole("bin", self.bin, 1, 64)
        check_alignment(self)
        checks.positive("bead_diameter", self.bead_diameter, "A")
        checks.check(self.beads in (None, "auto") or self.bead_diameter is not None,
                     "bead_diameter", self.bead_diameter, "given where beads are a file [A]")
        check_align(self)
        checks.check(not self.refine or self.method == "gradient", "refine", self.refine,
                     f"left out with method={self.method}")
        checks.not_negative("resolution", self.resolution, "A")
        checks.whole("iterations", self.iterations, 1, 10000)
        checks.not_negative("tv", self.tv, "1/A or 1/V")
        checks.check(self.tv != 0 or self.method != "gradient" or self.instrument == "stem"
                     or is_learned(self, vars(self)), "tv", self.tv, "above 0 [1/V]")
        checks.not_negative("margin", self.margin, "A")
        checks.within("voltage", self.voltage, 10, 3000, "kV")
        checks.within("spherical_aberration", self.spherical_aberration, -100, 100, "mm")
        checks.within("damage", self.damage, 0, 100, "1")
        checks.check(0 <= self.amplitude_contrast < 1, "amplitude_contrast",
                     self.amplitude_contrast, "at least 0 and below 1 [1]")
        checks.one_of("model", self.model, MODELS)
        checks.positive("slice_thickness", self.slice_thickness, "A")
        for key, given in (("model", self.model != "projection"),
                           ("slice_thickness", self.slice_thickness is not None)):
            checks.check(not given or self.method == "gradient", key, getattr(self, key),
                         f"left out with method={self.method}")
        checks.check(self.slice_thickness is None or self.model == "multislice",
                     "slice_thickness", self.slice_thickness, "left out with model=projection")
        stem = self.instrument == "stem"
        checks.one_of("specimen", self.specimen, ("voxels", "octree", "implicit"))
        check_learned(self, vars(self))
        for key in ("align", "refine", "beads") if stem else ():
            checks.check(not getattr(self, key), key, getattr(self, key),
                         "left out with instrument=stem")
        checks.check(self.model == "projection" or not stem, "model", self.model,
                     "projection with instrument=stem")
        checks.check(self.specimen == "voxels" or self.method == "gradient", "specimen",
                     self.specimen, f"voxels with method={self.method}")
        checks.whole("samples", self.samples, 2, 128)
        checks.whole("depth", self.depth, 0, 6)
        checks.whole("leaves", self.leaves, 8**min(self.depth, 1), 100000)
        checks.check(self.tv is None or self.specimen != "octree", "tv", self.tv,
                     "left out with specimen=octree, whose strength images held out choose")
        checks.check(self.held_out > 0 or self.specimen != "octree", "held_out", self.held_out,
                     "above 0 with specimen=octree")
        checks.check(self.held_out == 0 or self.held_out >= 2, "held_out", self.held_out,
                     "0, or a whole number from 2")
        checks.check(self.tv is not None or self.held_out > 0 or self.specimen == "implicit"
                     or self.method not in ("sirt_tv", "gradient"), "tv", self.tv,
                     "given where held_out=0")


def run(recipe: ReconstructRecipe, report: Report) -> Result:
    """A tomogram, and those of half of the images."""
    (name, images, pixel_size), = images_of(recipe)
    table = aligned_table(recipe, name, len(images))
    mask = None if recipe.mask is None else _mask(recipe.mask)
    found = refined(recipe, images, table, pixel_size, mask, report) if recipe.align else None
    table = table if found is None else found.tilts
    if recipe.beads is not None:
        images, mask = without_gold(images, table, pixel_size, mask, recipe.beads, Search(
            recipe.bead_diameter, cut_from=recipe.cut_from))
    grid = Grid(recipe.thickness, recipe.bin, recipe.cut_from,
                _margin(recipe, table, images.shape[2] * pixel_size))
    series = series_of(images, table, pixel_size, grid, mask)
    moved = None
    if recipe.refine:
        moved = fitted_shifts(series, table, _lens(recipe), recipe.align_within, report)
        table = moved.tilts
        series = series_of(images, table, pixel_size, grid, mask)
    scan = None if recipe.instrument == "tem" else scan_of(
        images, recipe.bin, recipe.signal, recipe.beam, recipe.dark_counts)
    settings = [str(value) for key, value in sorted(vars(recipe).items()) if key not in (
        "input", "output", "overwrite", "halves")]
    key = part_key(images, [*settings, pixel_size, table.to_csv(),
                            None if mask is None else part_key(mask, [])])
    voxel = series.rays.voxel
    more: dict[str, float] = {}
    whole, grown = _reconstructed(recipe, series, scan, table, report, key, more)
    volumes = {"tomogram.mrc": whole.volume}
    if recipe.halves:
        for number, rows in enumerate(halves_of(_order(table)), 1):
            part = None if scan is None else scan.some(rows)
            half, _ = _reconstructed(recipe, series.some(rows), part, table.iloc[rows], report,
                                     f"{key} half {number}", {})
            volumes[f"half{number}.mrc"] = half.volume
    tables = {} if found is None and moved is None else {"aligned.csv": table}
    halves = {} if found is None else alignment_numbers(found)
    if moved is not None:
        halves["refine_changed"] = {f"{name}_rms_A": by for name, by in moved.changed.items()}
    if recipe.halves:
        tables["fsc.csv"], halves["halves_agree_to_A"] = agreement(
            volumes["half1.mrc"], volumes["half2.mrc"], voxel, table)
    origin = tuple(-(n // 2) * voxel for n in reversed(whole.volume.shape))
    numbers = {"method": recipe.method, "images": len(images), "voxel_size_A": voxel,
               "shape": list(whole.volume.shape), "origin_A": list(origin),
               "unit": "V" if recipe.method == "gradient" and scan is None else "1/A",
               **halves, **more}
    if recipe.method != "wbp":
        numbers |= {"iterations": whole.iterations, "tv": whole.tv,
                    "held_out": list(whole.held_out)}
    figures: dict[str, Figure | bytes] = {
        "tomogram.png": planes_figure(slices(whole.volume.cpu().numpy(), voxel), voxel)}
    files = {}
    if grown is not None:
        numbers |= {"leaves": len(grown.field.tree.leaves), "values": grown.field.values.numel(),
                    "memory_estimate_MB": most_memory(series, _growth(recipe)) / 1e6}
        figures["tree.png"] = tree_figure(grown.field)
        files["tree.npz"] = grown.file
    dark = [number for number, image in enumerate(images, 1) if not image.mean() > 0]
    warnings = [f"{len(dark)} of {len(images)} images, the first of them image {dark[0]}, have no "
                "positive mean: they tell nothing."] if dark else []
    warnings += [doubt for one in (found, moved) if one is not None for doubt in one.doubts]
    curve = whole.held_out
    if len(curve) > recipe.iterations and min(curve) == curve[-1]:
        warnings.append(f"iterations={recipe.iterations}: images held out were explained ever "
                        "better until the last; more iterations may find more.")
    if recipe.method == "gradient" and scan is None:
        warnings += _doubts(recipe, table, voxel)
    taken = _taken(recipe, table, voxel, scan)
    if found is not None:
        finest = finest_of(recipe, table, pixel_size)
        how = "is by gold beads alone" if found.gain is None else (
            f"compares details from {finest:.3g} A")
        taken.append(f"The alignment {how}. What no image tells is the start's: where the specimen "
                     "is, and how it lies about the tilt axis.")
    if moved is not None:
        taken.append(_moved(moved))
    return Result(numbers, taken, warnings, tables=tables, figures=figures, files=files, volumes={
        file: (volume.cpu().numpy(), voxel, origin) for file, volume in volumes.items()})


def _reconstructed(recipe: ReconstructRecipe, series: Series, scan: Scan | None,
                   table: pd.DataFrame, report: Report, key: str, more: dict[str, float]
                   ) -> tuple[Tomogram, Grown | None]:
    """And of specimen=octree the tree; what else was found is put into `more`."""
    kept = Kept(unfinished_folder(recipe.output), key)
    if scan is not None:
        if recipe.specimen == "octree":
            counts, imaging = imaging_of(series, scan, table, recipe.convergence)
            unit = unit_of(scan.images(series, table, recipe.convergence))
            return _octree(recipe, counts, imaging, unit, report, kept)
        found, cone = tomogram_of(recipe, vars(recipe), series, scan, table, report, kept)
        if recipe.find_convergence:
            more["convergence_mrad"] = cone
        return found, None
    if recipe.method == "wbp":
        report(0, 1)
        found = back_projected(series, recipe.resolution)
        report(1, 1)
        return found, None
    if recipe.method == "gradient":
        lens, exposures = _lens(recipe), exposures_of(series, table, _lens(recipe))
        if is_learned(recipe, vars(recipe)):
            return potential_of(recipe, vars(recipe), Micrographs(series, exposures, lens), report,
                                kept), None
        if recipe.specimen == "octree":
            def imaging(of: Series, which: Sequence[int]) -> Explained:
                return model_of(of, which, exposures, series.rays.pixel, lens)

            return _octree(recipe, series, imaging, UNIT, report, kept)
        return fitted(series, exposures, lens, recipe.iterations, recipe.tv, recipe.positive,
                      recipe.held_out, report, kept), None
    tv = recipe.tv if recipe.method == "sirt_tv" else 0.0
    return iterated(series, recipe.iterations, tv, recipe.positive, recipe.held_out, report,
                    kept), None


def _octree(recipe: ReconstructRecipe, series: Series, imaging: Imaging, unit: float,
            report: Report, kept: Kept) -> tuple[Tomogram, Grown]:
    """The fit of gradient on a tree."""
    check_memory(f"leaves={recipe.leaves}", most_memory(series, _growth(recipe)),
                 "take fewer leaves or samples, or a larger bin")
    found = octree_fitted(series, imaging, Settings(_growth(recipe), rounds=recipe.iterations,
                                                    every=recipe.held_out, unit=unit), report, kept)
    volume = volume_of(found.field, series.rays.grid)
    return Tomogram(series.field(volume), volume, found.rounds, found.strength,
                    found.held_out), found


def _growth(recipe: ReconstructRecipe) -> Growth:
    return Growth(recipe.samples, recipe.depth, recipe.leaves, min(recipe.depth, 1))


def _lens(recipe: ReconstructRecipe) -> Lens:
    return Lens(recipe.voltage, recipe.spherical_aberration, recipe.amplitude_contrast,
                recipe.model, recipe.slice_thickness, recipe.damage)


def _moved(found: Alignment) -> str:
    """In one line, how far the fit moved the shifts."""
    x, y = found.changed.values()
    return (f"Shifts were refined with the specimen, by {x:.2g} A along x and {y:.2g} A along y, "
            "root mean square; their errors are those before.")


def _margin(recipe: ReconstructRecipe, table: pd.DataFrame, width: float) -> float:
    """Beside the field [A]: as far as the rim of the most tilted image sees, or one field."""
    if recipe.method == "wbp":
        return 0.0
    if recipe.margin is not None:
        return recipe.margin
    highest = np.deg2rad(min(float(table["tilt_angle"].abs().max()), 80.0))
    return float(min(recipe.thickness / 2 * np.tan(highest) + width / 2 * (1 / np.cos(highest) - 1),
                     width))


def _order(table: pd.DataFrame) -> np.ndarray:
    """Numbers that grow as the images were taken."""
    for name in ("acquisition_index", "prior_dose"):
        if name in table and np.isfinite(table[name].to_numpy(float)).all():
            return table[name].to_numpy(float)
    return np.arange(len(table), dtype=float)


def _mask(file: str) -> np.ndarray:
    try:
        return read_images(Path(file))[0]
    except (ValueError, OSError) as error:
        raise ValueError(f"mask: {error}") from error


def _doubts(recipe: ReconstructRecipe, table: pd.DataFrame, voxel: float) -> list[str]:
    """What speaks against the model, and defoci of a table that `recipe=ctf joint=true` wrote."""
    said = []
    deep = _lens(recipe).depth_of_focus(voxel)
    if recipe.model == "projection" and recipe.thickness > deep / 2:
        said.append(f"The tomogram of {recipe.thickness:.0f} A is thick beside the {deep:.0f} A in "
                    f"which details of {2 * voxel:.3g} A are in focus together: take "
                    "model=multislice.")
    most = replace(_lens(recipe), slice_thickness=None).slices(voxel)
    if recipe.slice_thickness is not None and recipe.slice_thickness > 1.01 * most:
        said.append(f"Slices of {recipe.slice_thickness:g} A leave details of {2 * voxel:.3g} A "
                    f"out of focus: {most:.0f} A are the thickest that do not.")
    if "reliable" in table and not (good := table["reliable"].astype(str) == "True").all():
        said.append(f"The defoci of {int((~good).sum())} of {len(table)} images are doubtful: the "
                    "fit that found them says so.")
    for name in LENS:
        if name in table and not np.allclose(table[name], getattr(recipe, name), rtol=1e-3):
            said.append(f"The defoci were found with {name}={table[name].iloc[0]:g}, the tomogram "
                        f"with {getattr(recipe, name):g}.")
    return said


def _taken(recipe: ReconstructRecipe, table: pd.DataFrame, voxel: float, scan: Scan | None
           ) -> list[str]:
    if scan is not None:
        taken = scan_taken(recipe, scan, recipe.method)
    elif recipe.method == "gradient":
        u, v, columns = defoci_of(table)
        taken = [*(noise_taken(recipe) if is_learned(recipe, vars(recipe)) else [
                     "The noise is white: in each image as strong as its high frequencies say."]),
                 f"The defoci are those of {columns}, {min(u.min(), v.min()):.0f} to "
                 f"{max(u.max(), v.max()):.0f} A.",
                 "The specimen is thin: a wave takes the phase of its projection."
                 if recipe.model == "projection" else
                 f"Waves pass the specimen in slices of {_lens(recipe).slices(voxel):.0f} A."]
        if recipe.specimen == "octree":
            taken.append("No potential is below that of the surroundings.")
    else:
        taken = ["Matter is darker than the mean of each image, by what it would absorb: the "
                 "contrast transfer function is left as it is."]
    if "shift_x" not in table:
        taken.append("The images are aligned: their table has no shifts.")
    return taken


RECIPE = (ReconstructRecipe, run)
