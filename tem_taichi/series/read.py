"""A real tilt series, from the files in which a microscope left it."""

import re
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import circmean

from tem_taichi import checks
from tem_taichi.files.io import read_images
from tem_taichi.files.tilt_tables import read_tilts
from tem_taichi.files.tilts import TILT_COLUMNS, prior_doses
from tem_taichi.scene.specimen import NAME, NAME_SAYS
from tem_taichi.series.record import TiltSeries

_FIELDS = ("name", "pixel_size", "voltage", "spherical_aberration", "chromatic_aberration",
           "amplitude_contrast", "height", "hand")
_COLUMNS = (*TILT_COLUMNS, "defocus")
_ENDINGS = re.compile(r"\.(mrcs?|st|ali|map|tiff?)(\.gz|\.bz2)?$", re.IGNORECASE)


def read_series(stack: str | Path, angles: str | Path, **known: Any) -> TiltSeries:
    """Read a real series: images and tilts; there are no particles and no truth.

    Args:
        stack: MRC (also .st or .gz) or TIFF file of the images.
        angles: .mdoc, .rawtlt, .tlt, or a table in CSV or TSV (`files.tilt_tables.read_tilts`), in
            the order of the stack.
        known: what these do not say, or say wrongly. Fields of `TiltSeries`: name, pixel_size,
            voltage, spherical_aberration, chromatic_aberration, amplitude_contrast, height and
            hand, which is -1 where it is not given. Columns of its `tilts`, as one number or one an
            image in the order of the stack: those of `files.tilts.TILT_COLUMNS`, and defocus for
            one without astigmatism. tilt_angle and axis_angle are the refined ones, if the images
            are aligned (shift_x, shift_y [A]).

    Returns:
        The series by ascending nominal angle. What is not known is None, or no column of `tilts`.

    Raises:
        ValueError: if a file can't be read, or a value or name can't be; one line.
    """
    odd = [name for name in known if name not in (*_FIELDS, *_COLUMNS)]
    if odd:
        raise ValueError(f"{odd[0]}: must be one of {', '.join((*_FIELDS, *_COLUMNS))}")
    images, pixel_size = read_images(Path(stack))
    table = _read(Path(angles), len(images), Path(stack))
    tilts = _tilts(table, {name: known.pop(name) for name in _COLUMNS if name in known})
    said = {name: float(table[name][0]) for name in ("pixel_size", "voltage") if name in table}
    if pixel_size is not None:
        said["pixel_size"] = pixel_size
    order = np.argsort(tilts["nominal_angle"].to_numpy(), kind="stable")
    fields = {"name": _ENDINGS.sub("", Path(stack).name), "hand": -1, **said, **known}
    _check(fields)
    return TiltSeries(
        **fields, images=torch.from_numpy(images[order]),
        tilts=tilts.iloc[order].reset_index(drop=True),
        integer=all((image == np.rint(image)).all() for image in images), axis_angle=round(
            float(circmean(tilts["axis_angle"], 180, -180)), 6) if "axis_angle" in tilts else None)


def _read(angles: Path, count: int, stack: Path) -> pd.DataFrame:
    """The table of angles, without columns that are not known for every image."""
    try:
        table = read_tilts(angles)
    except OSError as error:
        raise ValueError(f"{angles}: can't be read ({error.strerror})") from error
    if "tilt_angle" not in table or len(table) != count:
        raise ValueError(f"{angles}: has {len(table)} tilt angles: must have one for each of the "
                         f"{count} images of {stack.name}")
    return table.dropna(axis="columns")


def _tilts(table: pd.DataFrame, known: dict[str, Any]) -> pd.DataFrame:
    """nominal_angle and those of TILT_COLUMNS that are known, in the order of the stack."""
    tilts = pd.DataFrame({"nominal_angle": table["tilt_angle"], **{
        name: table[name] for name in _COLUMNS if name in table}})
    for name, value in known.items():
        tilts[name] = _column(name, value, len(table))
    # That of a file which knows no doses, or only 0.
    if "dose" in known and "prior_dose" in tilts and not tilts["prior_dose"].is_unique:
        del tilts["prior_dose"]
    if "defocus" in tilts:
        tilts["defocus_u"] = tilts["defocus_v"] = tilts.pop("defocus")
    for one, other in (("shift_x", "shift_y"), ("defocus_u", "defocus_v")):
        if (one in tilts) != (other in tilts):
            raise ValueError(f"{one}, {other}: must be given both or neither")
    if "defocus_u" in tilts:
        tilts = tilts.assign(**{name: 0.0 for name in ("astigmatism_angle", "phase_shift")
                                if name not in tilts})
    if "acquisition_index" not in tilts:
        by = tilts["prior_dose"] if "prior_dose" in tilts else np.arange(len(tilts))
        tilts["acquisition_index"] = np.argsort(np.argsort(by, kind="stable"))
    if sorted(tilts["acquisition_index"]) != list(range(len(tilts))):
        raise ValueError("acquisition_index: must hold 0 .. n-1, each once")
    if "dose" in tilts and "prior_dose" not in tilts:
        tilts["prior_dose"] = prior_doses(tilts["dose"], tilts["acquisition_index"])
    return tilts


def _column(name: str, value: Any, count: int) -> NDArray[np.float64]:
    """One number or one an image as a column."""
    values = np.asarray(value, dtype=np.float64)
    if values.shape not in ((), (count,)) or not np.isfinite(values).all():
        raise ValueError(f"{name}: must be one finite number or one for each of the {count} images")
    return np.broadcast_to(values, count)


def _check(fields: dict[str, Any]) -> None:
    """Refuse what can't be."""
    checks.check(bool(re.fullmatch(NAME, str(fields["name"]))), "name", fields["name"], NAME_SAYS)
    for name in fields.keys() - {"name"}:
        checks.check(fields[name] is None or isinstance(fields[name], Real), name, fields[name],
                     "a number")
    checks.check(fields.get("pixel_size") is not None, "pixel_size", None,
                 "given [A]; the files have none")
    for name, unit in (("pixel_size", "A"), ("voltage", "kV")):
        checks.positive(name, fields.get(name), unit)
    for name, unit in (("spherical_aberration", "mm"), ("chromatic_aberration", "mm")):
        checks.not_negative(name, fields.get(name), unit)
    checks.within("amplitude_contrast", fields.get("amplitude_contrast") or 0.0, -1, 1, "1")
    height = fields.get("height")
    checks.check(height is None or (height > 0 and height % 2 == 0), "height", height,
                 "an even number of voxels")
    checks.check(fields["hand"] in (-1, 1), "hand", fields["hand"], "1 or -1")
