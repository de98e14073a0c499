"""What is known of the images of a tilt series, in any of the files that programs keep it in."""

from pathlib import Path

import pandas as pd

from tem_taichi.files.tilts import read_mdoc, read_rawtlt

_UNITS = {"deg": 1.0, "e_per_A2": 1.0, "A": 1.0, "nm": 10.0, "um": 1e4}
"""Endings of a table's columns, and what makes them degrees, A and e-/A^2."""

_NUMBERS = ("tilt_angle", "axis_angle", "dose", "prior_dose", "acquisition_index", "shift_x",
            "shift_y", "defocus", "defocus_u", "defocus_v", "target_defocus", "astigmatism_angle")
"""Columns that are used."""


def read_tilts(path: Path) -> pd.DataFrame:
    """Read a .mdoc, .rawtlt or .tlt file, or else a table in CSV or, by its name, TSV.

    A table has tilt_angle or angle [deg] and whatever else is known: axis_angle [deg]; dose,
    prior_dose [e-/A^2]; defocus, defocus_u, defocus_v, shift_x, shift_y [A] and others. Names may
    end with a unit, as in defocus_um.

    Returns:
        One row an image in the order of the file, columns without units in their names.

    Raises:
        ValueError: if the file can't be read, or what should be a number is none.
        OSError: if there is no such table.
    """
    path = Path(path)
    if path.suffix == ".mdoc":
        return read_mdoc(path)
    if path.suffix in (".rawtlt", ".tlt"):
        return pd.DataFrame({"tilt_angle": read_rawtlt(path)})
    table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    if not table.index.equals(pd.RangeIndex(len(table))):  # pandas shifts the names then
        raise ValueError(f"{path}: rows have more cells than there are names of columns")
    return _in_our_units(table)


def angles_beside(stack: Path) -> list[Path]:
    """Files of tilt angles that belong to a stack by name."""
    return [one for one in (Path(f"{stack}.mdoc"), *(
        stack.with_suffix(end) for end in (".mdoc", ".rawtlt", ".tlt"))) if one.is_file()]


def tables_beside(stack: Path) -> list[Path]:
    """Files of tilt angles and tables that belong to a stack by name."""
    return angles_beside(stack) + [one for one in (stack.with_suffix(".tsv"),
                                                   stack.with_suffix(".csv")) if one.is_file()]


def tilts_of(stack: Path, file: str | None, count: int, key: str = "angles") -> pd.DataFrame:
    """Angles, and what else is known, of the images of a stack, in its order.

    Args:
        stack: file of the images.
        file: of the angles; None = beside the stack, by name.
        count: of images.
        key: that names the file, for errors.

    Raises:
        ValueError: if no file of angles is found or it has another number of images.
    """
    path = Path(file) if file else next(iter(tables_beside(stack)), None)
    if path is None:
        raise ValueError(f"{key}=null: there is no .mdoc, .rawtlt, .tlt, .tsv or .csv beside "
                         f"{stack.name}: must be given")
    try:
        table = read_tilts(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from error
    if "tilt_angle" in table and not (table["tilt_angle"].abs() <= 90).all():
        row = (table["tilt_angle"].abs() <= 90).to_numpy().argmin()
        raise ValueError(f"{key}={path}: row {row + 1}, tilt_angle="
                         f"{table['tilt_angle'].iloc[row]}: must be within 90 of 0 [deg]")
    if "tilt_angle" not in table or len(table) != count:
        raise ValueError(f"{key}={path}: has {len(table)} rows"
                         f"{'' if 'tilt_angle' in table else ' and no column tilt_angle'}: must "
                         f"have one tilt angle for each of the {count} images of {stack.name}")
    return table


def _in_our_units(table: pd.DataFrame) -> pd.DataFrame:
    """Columns without the unit in their name: defocus_um becomes defocus [A]."""
    columns = {}
    for name, values in table.items():
        plain = str(name).strip("# ")
        unit = next((unit for unit in _UNITS if plain.endswith(f"_{unit}")), None)
        ours = plain[:-len(unit) - 1] if unit else plain
        ours = "tilt_angle" if ours == "angle" else ours
        if ours in columns:
            raise ValueError(f"column {name}: there is another of {ours}")
        if ours in _NUMBERS or unit:
            numbers = pd.to_numeric(values, errors="coerce")
            odd = (numbers.isna() & values.notna()).to_numpy()
            if odd.any() or values.dtype.kind == "b":
                row = odd.argmax()
                raise ValueError(f"row {row + 1}, column {name}: {values.iloc[row]!r} must be a "
                                 "number")
            values = numbers * (_UNITS[unit] if unit else 1.0)
        columns[ours] = values
    return pd.DataFrame(columns)
