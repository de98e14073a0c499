"""Files of a tilt series' angles, doses and other truth: CSV, rawtlt and SerialEM's mdoc.

A tilt series' truth is a table, one row an image in the order of the stack, with the columns
TILT_COLUMNS; whoever simulates builds it, the writers here take it.

mdoc files are written and read here, not by mdocfile, which writes SubFramePath with the
backslashes of Windows, and refuses a letter beyond ASCII, a number that it does not know to read in
a key that nobody uses, or a second "=" in the header, as microscopes' own files have them.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tem_taichi import __version__

TILT_COLUMNS = (
    "tilt_angle",         # [deg], ascending
    "acquisition_index",  # place in the order of acquisition, from 0
    "prior_dose",         # before this image [e-/A^2]
    "dose",               # of this image [e-/A^2]
    "axis_angle",         # of the tilt axis, counter-clockwise from +y [deg]
    "shift_x", "shift_y",                                    # of the image [A]
    "defocus_u", "defocus_v",                                # positive is underfocus [A]
    "astigmatism_angle",                                     # of defocus_u, from +x [deg]
    "phase_shift",                                           # of a phase plate [deg]
)
"""Columns of the table of a tilt series."""

_FIRST_EXPOSURE = datetime(2025, 1, 1)  # any fixed day: the same input gives the same bytes
_EXPOSURE_INTERVAL = timedelta(minutes=1)


def _check_tilts(table: pd.DataFrame) -> None:
    missing = [name for name in TILT_COLUMNS if name not in table]
    if missing:
        raise ValueError(f"table of tilts: columns {', '.join(missing)} are missing")
    for name in TILT_COLUMNS:
        if not np.all(np.isfinite(table[name].to_numpy(dtype=np.float64))):
            raise ValueError(f"table of tilts: a value of {name} is not finite")
    if np.any(np.diff(table["tilt_angle"]) < 0):
        raise ValueError("table of tilts: tilt_angle must ascend")
    if sorted(table["acquisition_index"]) != list(range(len(table))):
        raise ValueError("table of tilts: acquisition_index must hold 0 .. n-1, each once")


def write_tilt_table(path: Path, table: pd.DataFrame) -> None:
    """Write the table of a tilt series as CSV with TILT_COLUMNS, no digit lost.

    Raises:
        ValueError: if a column is missing, a value not finite or the order not by angle.
    """
    _check_tilts(table)
    table.to_csv(path, columns=list(TILT_COLUMNS), index=False, lineterminator="\n")


def write_rawtlt(path: Path, tilt_angles: ArrayLike) -> None:
    """Write tilt angles as IMOD's .rawtlt: one a line, in the order of the stack.

    Args:
        path: file to write.
        tilt_angles: angles [deg], shape (n,).

    Raises:
        ValueError: if an angle is not finite.
    """
    angles = np.asarray(tilt_angles, dtype=np.float64)
    if not np.all(np.isfinite(angles)):
        raise ValueError(f"{path}: tilt angles must be finite [deg]")
    np.savetxt(path, angles.round(4) + 0.0, fmt="%.4f")  # + 0.0: no "-0.0000"


def image_names(name: str, table: pd.DataFrame) -> list[str]:
    """Names of files with one image each: `<name>_<place in acquisition>_<tilt angle>.mrc`.

    Args:
        name: of the tilt series.
        table: columns acquisition_index and tilt_angle [deg], nominal.
    """
    return [f"{name}_{int(row.acquisition_index):03d}_{row.tilt_angle:.1f}.mrc"
            for row in table.itertuples(index=False)]


def write_mdoc(path: Path, table: pd.DataFrame, *, image_file: str, pixel_size: float,
               voltage: float, shape: tuple[int, int], mode: int = 2,
               frames: tuple[Sequence[str], int] | None = None) -> None:
    """Write a tilt series' metadata as SerialEM's mdoc, sections in the order of the stack.

    Signs are SerialEM's: defocus is in um and negative for underfocus; RotationAngle is the
    tilt axis angle + 90 deg. TargetDefocus is the mean of the series.

    Args:
        path: file to write, by custom `<image_file>.mdoc`.
        table: the series, columns TILT_COLUMNS.
        image_file: name of the stack.
        pixel_size: [A].
        voltage: [kV].
        shape: of one image (ny, nx).
        mode: pixel type of the stack as from `mrc_mode`.
        frames: names of files that hold each image or its movie, in the order of the stack, and
            how many frames each has: SubFramePath and NumSubFrames, which are left out without.

    Raises:
        ValueError: if a column is missing, a value not finite, the order not by angle or the
            number of names not that of the images.
    """
    _check_tilts(table)
    if frames is not None and len(frames[0]) != len(table):
        raise ValueError(f"frames: has {len(frames[0])} names; must have one for each of the "
                         f"{len(table)} images")
    # The mean direction: a plain mean fails where angles lie on both sides of 180 deg.
    axis = np.angle(np.mean(np.exp(1j * np.deg2rad(table["axis_angle"]))), deg=True)
    defocus = -(table["defocus_u"] + table["defocus_v"]) / 2e4
    lines = [
        f"PixelSpacing = {pixel_size:g}", f"Voltage = {voltage:g}", f"ImageFile = {image_file}",
        f"ImageSize = {shape[1]} {shape[0]}", f"DataMode = {mode}", "",
        f"[T = tem_taichi {__version__}]", "",
        f"[T =     Tilt axis angle = {axis:.2f}, binning = 1  spot = 1  camera = 0]", "",
    ]
    for z, row in enumerate(table.itertuples(index=False)):
        time = _FIRST_EXPOSURE + int(row.acquisition_index) * _EXPOSURE_INTERVAL
        lines += [
            f"[ZValue = {z}]",
            f"TiltAngle = {row.tilt_angle:.4f}",
            f"RotationAngle = {(row.axis_angle + 270) % 360 - 180:.4f}",
            f"ExposureDose = {row.dose:.6g}",
            f"PriorRecordDose = {row.prior_dose:.6g}",
            f"Defocus = {defocus.iloc[z]:.4f}",
            f"TargetDefocus = {defocus.mean():.4f}",
            f"PixelSpacing = {pixel_size:g}",
            f"Voltage = {voltage:g}",
            *([] if frames is None else
              [f"SubFramePath = {frames[0][z]}", f"NumSubFrames = {frames[1]}"]),
            # Two spaces, English month: Warp takes no other form.
            f"DateTime = {time:%d-%b-%y  %H:%M:%S}",
            "",
        ]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def read_rawtlt(path: Path) -> NDArray[np.float64]:
    """Read tilt angles from IMOD's .rawtlt or .tlt: one a line, in the order of the stack.

    Returns:
        Angles [deg], shape (n,).

    Raises:
        ValueError: if the file can't be read, is empty or a line is no finite number.
    """
    lines = _lines(path)
    angles = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        angles.append(_number(path, f"line {number}", line))
    if not angles:
        raise ValueError(f"{path}: has no tilt angles")
    return np.array(angles)


def prior_doses(dose: ArrayLike, acquisition_index: ArrayLike) -> NDArray[np.float64]:
    """Dose that the earlier images of a series brought, before each image [e-/A^2].

    Args:
        dose: of each image [e-/A^2], (n,).
        acquisition_index: its place in the order of acquisition, from 0, (n,).
    """
    order = np.argsort(acquisition_index)
    in_order = np.asarray(dose, dtype=np.float64)[order]
    return (np.cumsum(in_order) - in_order)[np.argsort(order)]


def read_mdoc(path: Path) -> pd.DataFrame:
    """Read a tilt series' metadata from an mdoc file of SerialEM or alike.

    Args:
        path: file with sections [ZValue = n], in any order, or [FrameSet = n].

    Returns:
        One row an image by ascending ZValue: tilt_angle [deg]; acquisition_index from 0, by
        DateTime, else PriorRecordDose, else ZValue; dose and prior_dose [e-/A^2] (what the
        earlier images brought, where the file has no PriorRecordDose; NaN without
        ExposureDose); axis_angle [deg] from the header's tilt axis angle, else RotationAngle
        - 90, else NaN; target_defocus [A], positive is underfocus, or NaN; sub_frame_path, the
        file's name alone, or ""; pixel_size [A] and voltage [kV], or NaN.

    Raises:
        ValueError: if the file can't be read, has no section, or a section has no tilt angle or
            a value that is no number; one line with file, section and key.
    """
    header, sections = _sections(path)
    if not sections:
        raise ValueError(f"{path}: has no section [ZValue = ...]")
    sections.sort(key=lambda section: float(section["Z"]))
    values = {key: np.array([_number(path, f"section {part['Z']}, {key}", part[key])
                             if key in part else np.nan for part in sections])
              for key in ("TiltAngle", "ExposureDose", "PriorRecordDose", "RotationAngle",
                          "TargetDefocus", "PixelSpacing", "Voltage")}
    if np.isnan(values["TiltAngle"]).any():
        first = int(np.argmax(np.isnan(values["TiltAngle"])))
        raise ValueError(f"{path}: section {sections[first]['Z']} has no TiltAngle")
    times = [_time(part.get("DateTime", "")) for part in sections]
    prior = values["PriorRecordDose"]
    if all(time is not None for time in times):
        order = np.argsort(np.array(times, dtype="datetime64[s]"), kind="stable")
    elif np.isfinite(prior).all() and len(np.unique(prior)) == len(prior):
        order = np.argsort(prior)
    else:
        order = np.arange(len(sections))
    index = np.argsort(order)
    if np.isnan(prior).any():
        prior = prior_doses(values["ExposureDose"], index)
    axis = [line.lower().split("tilt axis angle =")[1].split(",")[0] for line in header
            if "tilt axis angle =" in line.lower()]
    turned = (values["RotationAngle"] + 90) % 360 - 180  # less 90 deg, from -180 to 180
    return pd.DataFrame({
        "tilt_angle": values["TiltAngle"], "acquisition_index": index,
        "prior_dose": prior, "dose": values["ExposureDose"],
        "axis_angle": _number(path, "tilt axis angle", axis[0]) if axis else turned,
        "target_defocus": -1e4 * values["TargetDefocus"],
        "sub_frame_path": [part.get("SubFramePath", "").replace("\\", "/").split("/")[-1]
                           for part in sections],
        "pixel_size": values["PixelSpacing"], "voltage": values["Voltage"]})


def _lines(path: Path) -> list[str]:
    try:
        # Comments of SerialEM's users may be in any 8-bit code.
        return Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from error


def _number(path: Path, place: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{path}: {place}: {text.strip()!r} must be a finite number")
    return value


def _sections(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Titles, and keys of each section or else of the whole file; Z is a section's number."""
    header: list[str] = []
    sections: list[dict[str, str]] = []
    general: dict[str, str] = {}
    current: dict[str, str] | None = general
    for line in map(str.strip, _lines(path)):
        if line.startswith("["):
            kind, _, value = line.strip("[]").partition("=")
            current = None
            if kind.strip() in ("ZValue", "FrameSet"):
                current = {**general, "Z": value.strip()}
                _number(path, kind.strip(), current["Z"])
                sections.append(current)
            else:
                header.append(line)
        elif current is not None and "=" in line:
            key, _, value = line.partition("=")
            current[key.strip()] = value.strip()
    return header, sections


def _time(text: str) -> datetime | None:
    for form in ("%d-%b-%y %H:%M:%S", "%d-%b-%Y %H:%M:%S"):
        try:
            return datetime.strptime(" ".join(text.split()), form)
        except ValueError:
            continue
    return None
