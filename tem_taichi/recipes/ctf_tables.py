"""What is written and printed of the rows of CTF fits."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tem_taichi.estimate.ctf_figure import ctf_star
from tem_taichi.estimate.ctf_row import fit_of

Row = dict[str, Any]
Tables = dict[str, pd.DataFrame | dict[str, pd.DataFrame]]

LENS = ("voltage", "spherical_aberration", "amplitude_contrast")
"""Columns of a table of tilts that say what its defoci were fitted with [kV, mm, 1]."""
_SHOWN = 20
"""Fits of which a line is printed."""
_FOUND = ("defocus_u", "defocus_v", "astigmatism_angle", "phase_shift")


def star_tables(rows: Sequence[Row], pixel_size: float,
                lens: tuple[float, float, float]) -> Tables:
    """RELION star files: good fits apart from doubtful ones.

    Args:
        rows: numbers of the fits, each with the name of its image.
        pixel_size: [A].
        lens: voltage [kV], Cs [mm] and amplitude contrast.
    """
    tables: Tables = {}
    for name, good in (("micrographs_ctf", True), ("micrographs_ctf_doubtful", False)):
        chosen = [row for row in rows if row["reliable"] is good and "failed" not in row]
        if chosen:
            tables[f"{name}.star"] = ctf_star(
                [row["name"] for row in chosen], [fit_of(row) for row in chosen],
                pixel_size=pixel_size, **dict(zip(LENS, lens, strict=True)))
    return tables


def tilt_table(tilts: pd.DataFrame, rows: Sequence[Row],
               lens: tuple[float, float, float]) -> pd.DataFrame:
    """The table of tilts with what was found of each, for whatever reads `angles`.

    Args:
        tilts: what was known of the images; defoci there are replaced.
        rows: numbers of the fits.
        lens: voltage [kV], Cs [mm] and amplitude contrast, which the table says too.
    """
    known = tilts.drop(columns=[name for name in ("defocus", *_FOUND) if name in tilts])
    return known.assign(
        **{name: [row[name] for row in rows] for name in _FOUND},
        **{f"{name}_error": [row["errors"][n] for row in rows] for n, name in enumerate(_FOUND)},
        **dict(zip(LENS, lens, strict=True)), reliable=[row["reliable"] for row in rows])


def lines_of(fits: Sequence[Row]) -> list[str]:
    """What a person wants to see of the first fits.

    Args:
        fits: rows, with null for what JSON has no number for.
    """
    lines, said = [], ""
    for fit in fits[:_SHOWN]:
        if "failed" in fit:
            lines.append(f"{fit['name']}: FAILED: {fit['failed']}")
            continue
        doubt = "" if fit["reliable"] else f"  UNRELIABLE: {'; '.join(fit['doubts'])}"
        # All images of a series that was fitted in one have the same.
        doubt, said = "  UNRELIABLE: as above" if doubt and doubt == said else doubt, doubt
        rings = f"rings to {fit['resolution']:.1f} A" if fit["resolution"] else "no rings"
        lines.append(f"{fit['name']}: defocus {fit['defocus_u']:.0f} {fit['defocus_v']:.0f} A at "
                     f"{fit['astigmatism_angle']:.1f} deg, {rings}{doubt}")
    if len(fits) > _SHOWN:
        lines.append(f"... and {len(fits) - _SHOWN} more; {sum(not f['reliable'] for f in fits)} "
                     f"of {len(fits)} are unreliable")
    return lines
