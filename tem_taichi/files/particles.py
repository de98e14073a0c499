"""Files of particles: RELION 5's particles.star, and lists of placements to simulate.

Both hold the same table, one row a particle: x, y, z from the specimen's centre [A]; rot, tilt,
psi [deg] in RELION's convention (`rotations.euler_to_matrix`); kind, the name of its structure.
"""

import linecache
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray

from tem_taichi.rotations import euler_to_matrix, matrix_to_euler

POSITION = ("x", "y", "z")
ANGLES = ("rot", "tilt", "psi")
KIND = "kind"

_STAR = {
    "x": "rlnCenteredCoordinateXAngst", "y": "rlnCenteredCoordinateYAngst",
    "z": "rlnCenteredCoordinateZAngst",
    "rot": "rlnAngleRot", "tilt": "rlnAngleTilt", "psi": "rlnAnglePsi",
    KIND: "temParticle",
}
# Parts of a pose that RELION keeps apart: a shift and a rotation of the extracted box.
_OFFSET = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
_BOX_ANGLES = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")


def write_particles(path: Path, particles: pd.DataFrame, *, tomogram: str, pixel_size: float,
                    voltage: float, spherical_aberration: float,
                    amplitude_contrast: float, stacks_2d: bool = False) -> None:
    """Write true poses as RELION 5's particles.star.

    Positions and angles are written as they are given: relative to the tomogram's centre and
    axes, whichever those are.

    Args:
        path: file to write.
        particles: columns x, y, z [A], rot, tilt, psi [deg] and kind, and perhaps filament, the
            number of the filament each is part of, and in_field and seen, of `visibility`; may
            have no rows.
        tomogram: name of the tilt series (rlnTomoName).
        pixel_size: of the tilt series [A].
        voltage: [kV].
        spherical_aberration: [mm].
        amplitude_contrast: fraction.
        stacks_2d: whether to say, as RELION 5 does in data_general, that extracted particles are
            stacks of 2D images.

    Raises:
        ValueError: if a column is missing, a value is not finite, or a name has a space, a
            quote or a #, which not every reader of star files takes.
    """
    missing = [name for name in (*POSITION, *ANGLES, KIND) if name not in particles]
    if missing:
        raise ValueError(f"particles: columns {', '.join(missing)} are missing")
    for name in (tomogram, *particles[KIND].unique()):
        if not re.fullmatch(r"[^\s\"'#]+", str(name)):
            raise ValueError(f"name {name!r}: must have no space, quote or #, nor be empty")
    numbers = _finite(path, particles, (*POSITION, *ANGLES))
    optics = pd.DataFrame({
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnVoltage": [float(voltage)],
        "rlnSphericalAberration": [float(spherical_aberration)],
        "rlnAmplitudeContrast": [float(amplitude_contrast)],
        "rlnTomoTiltSeriesPixelSize": [float(pixel_size)],
        "rlnImagePixelSize": [float(pixel_size)],
    })
    table = numbers.rename(columns=_STAR).reset_index(drop=True)
    table.insert(0, "rlnTomoName", tomogram)
    table["rlnOpticsGroup"] = 1
    table["rlnTomoParticleName"] = [f"{tomogram}/{i + 1}" for i in range(len(table))]
    table[_STAR[KIND]] = particles[KIND].to_numpy()
    if "filament" in particles:
        table["rlnHelicalTubeID"] = particles["filament"].to_numpy(int)
    for column, label in (("in_field", "temInField"), ("seen", "temVisibleTilts")):
        if column in particles:
            table[label] = particles[column].to_numpy()
    # RELION converts the labels of files that do not say they are new.
    general = "data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n\n\n" if stacks_2d else ""
    text = general + star_table("optics", optics) + "\n" + star_table("particles", table)
    Path(path).write_text("# version 50001\n\n" + text, encoding="utf-8")


def star_table(name: str, table: pd.DataFrame) -> str:
    """Text of a table (`data_<name>` with a `loop_`) of a star file, 6 digits after the point.

    Not by starfile, which begins every file with the time of day and its own version, where RELION
    looks for that of the labels.
    """
    labels = "".join(f"_{label} #{i}\n" for i, label in enumerate(table.columns, 1))
    rows = table.to_csv(sep="\t", header=False, index=False, float_format="%.6f",
                        lineterminator="\n")
    return f"data_{name}\n\nloop_\n{labels}{rows}\n"


def read_placements(path: Path) -> pd.DataFrame:
    """Read where particles are, from a RELION 5 star file or a CSV file.

    A CSV file has the header `x,y,z[,rot,tilt,psi][,kind]`. Of a star file's table `particles`
    (or its only one) these are read: `rlnCenteredCoordinate*Angst`, `rlnAngle*`, temParticle, and
    `rlnOrigin*Angst` and `rlnTomoSubtomogram*`, which are put into the pose as RELION does
    (particle_set.cpp: position - B offset and rotation B A, with B the box's rotation).

    Args:
        path: a file that ends in .star or .csv.

    Returns:
        Columns x, y, z from the specimen's centre [A], rot, tilt, psi [deg] (0 where the file
        has no angles) and, only if the file has it, kind.

    Raises:
        ValueError: if the file can't be read, a column is missing, or a value is not a finite
            number; one line with file, row (from 1, without the header) and column.
    """
    path = Path(path)
    if path.suffix not in (".star", ".csv"):
        raise ValueError(f"{path}: must end in .star or .csv")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return _read_star(path) if path.suffix == ".star" else _read_csv(path)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # pandas only warns of rows that are longer than the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True,
                                index_col=False, encoding="utf-8-sig")
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path}: can't be read as CSV ({str(error).splitlines()[0]})") from error
    table.columns = table.columns.str.strip()
    known = (*POSITION, *ANGLES, KIND)
    unknown = [name for name in table if name not in known]
    if unknown:
        raise ValueError(f"{path}: column {unknown[0]!r} must be one of {', '.join(known)}")
    _require(path, table, POSITION)
    _require_all_or_none(path, table, ANGLES)
    placements = _finite(path, table, [name for name in table if name != KIND])
    return _complete(path, placements, table.get(KIND))


def _read_star(path: Path) -> pd.DataFrame:
    table = _star_table(path)
    centred = [_STAR[name] for name in POSITION]
    if "rlnCoordinateX" in table and not any(label in table for label in centred):
        raise ValueError(f"{path}: rlnCoordinateX, Y, Z are pixels of a tomogram; needs "
                         f"{', '.join(centred)}")
    angles = [_STAR[name] for name in ANGLES]
    _require(path, table, centred)
    for labels in (angles, _OFFSET, _BOX_ANGLES):
        _require_all_or_none(path, table, labels)
    if "rlnTomoName" in table and table["rlnTomoName"].nunique() > 1:
        names = ", ".join(str(name) for name in table["rlnTomoName"].unique()[:3])
        raise ValueError(f"{path}: rlnTomoName has several tomograms ({names}); keep one")
    used = [*centred, *(label for label in (*angles, *_OFFSET, *_BOX_ANGLES) if label in table)]
    numbers = _finite(path, table, used)
    placements = _into_one_pose(numbers).rename(columns={v: k for k, v in _STAR.items()})
    return _complete(path, placements, table.get(_STAR[KIND]))


def _star_table(path: Path) -> pd.DataFrame:
    linecache.checkcache(str(path))  # starfile reads through it, and may have met an older file
    try:
        blocks = starfile.read(path, always_dict=True, parse_as_string=[_STAR[KIND]])
    except Exception as error:  # starfile raises whatever broken text leads it to
        raise ValueError(f"{path}: can't be read as a star file") from error
    tables = {name: block for name, block in blocks.items() if isinstance(block, pd.DataFrame)}
    if "particles" not in tables and len(tables) != 1:
        found = ", ".join(f"data_{name}" for name in tables) or "none"
        raise ValueError(f"{path}: needs a table data_particles; has {found}")
    return tables.get("particles", next(iter(tables.values())))


def _into_one_pose(numbers: pd.DataFrame) -> pd.DataFrame:
    position = [_STAR[name] for name in POSITION]
    angles = [_STAR[name] for name in ANGLES]
    pose = pd.DataFrame(0.0, index=numbers.index, columns=[*position, *angles])
    pose.update(numbers)
    if _BOX_ANGLES[0] in numbers:
        box = euler_to_matrix(*numbers[list(_BOX_ANGLES)].to_numpy().T)
        rotation = box @ euler_to_matrix(*pose[angles].to_numpy().T)
        pose[angles] = np.stack(matrix_to_euler(rotation), axis=-1)
    else:
        box = np.broadcast_to(np.eye(3), (len(numbers), 3, 3))
    if _OFFSET[0] in numbers:
        offset: NDArray[np.float64] = numbers[list(_OFFSET)].to_numpy()
        pose[position] -= np.einsum("nij,nj->ni", box, offset)
    return pose


def _require(path: Path, table: pd.DataFrame, names: tuple[str, ...] | list[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{path}: column {', '.join(missing)} is missing")


def _require_all_or_none(path: Path, table: pd.DataFrame,
                         names: tuple[str, ...] | list[str]) -> None:
    if any(name in table for name in names):
        _require(path, table, names)


def _finite(path: Path, table: pd.DataFrame, names: tuple[str, ...] | list[str]) -> pd.DataFrame:
    """Columns as numbers, or the place of the first value that is none."""
    given = table[list(names)]
    numbers = given.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = np.argwhere(~np.isfinite(numbers.to_numpy()))
    if bad.size:
        row, column = bad[0]
        value = str(given.iat[row, column])
        raise ValueError(f"{path}: row {row + 1}, column {given.columns[column]}: {value!r} "
                         "must be a finite number")
    return numbers


def _complete(path: Path, placements: pd.DataFrame, kind: pd.Series | None) -> pd.DataFrame:
    """The columns in their order, angles 0 where none were given."""
    result = placements.reindex(columns=[*POSITION, *ANGLES], fill_value=0.0)
    if kind is not None:
        names = kind.fillna("").astype(str).str.strip()
        if (names == "").any():
            row = int(np.argmax(names == "")) + 1
            raise ValueError(f"{path}: row {row}, column {kind.name}: must not be empty")
        result[KIND] = names
    return result.reset_index(drop=True)
