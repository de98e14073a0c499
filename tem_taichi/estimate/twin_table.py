"""The table of a real tilt series, as complete as a simulation needs it."""

import numpy as np
import pandas as pd

from tem_taichi.estimate.ctf_search import CtfSearch
from tem_taichi.estimate.ctf_tilt import fit_stack
from tem_taichi.estimate.thickness_fit import fit_thickness, mean_intensities

_COARSEST = 5.0
"""Pixel size [A] up to which Thon rings are looked for."""
_WHOLE = 0.1
"""How far steps of the prior dose may be from whole numbers of the least one."""


def complete_table(tilts: pd.DataFrame, images: np.ndarray, pixel_size: float, voltage: float,
                   spherical_aberration: float) -> tuple[pd.DataFrame, list[str]]:
    """Fill in what a real series' table leaves out.

    Args:
        tilts: one row an image, with tilt_angle [deg]; prior_dose [e-/A^2], dose, or both;
            acquisition_index, or else by prior_dose, or else rows are in the order of
            acquisition; defocus_u and defocus_v, or defocus, or target_defocus [A, positive is
            underfocus], or else the Thon rings tell; axis_angle [deg], shift_x, shift_y [A], 0
            where not given. A column with a value that is not finite counts as not given.
        images: (n, ny, nx), for the rings.
        pixel_size: [A].
        voltage: [kV].
        spherical_aberration: Cs [mm].

    Returns:
        Columns tilt_angle, acquisition_index from 0, prior_dose, dose, axis_angle, shift_x,
        shift_y, defocus, astigmatism [A] and astigmatism_angle [deg], rows in the order given;
        and what was assumed, one sentence each.

    Raises:
        ValueError: if a column is missing that nothing replaces, or a dose is not positive.
    """
    notes: list[str] = []
    angles = _column(tilts, "tilt_angle")
    if angles is None:
        raise ValueError("tilts: column tilt_angle must be there and finite [deg]")
    table = pd.DataFrame({"tilt_angle": angles, **_doses(tilts, angles, images, notes)})
    for name in ("axis_angle", "shift_x", "shift_y"):
        values = _column(tilts, name)
        table[name] = 0.0 if values is None else values
    given = _defoci(tilts)
    if given is None:
        known = None if _column(tilts, "axis_angle") is None else list(zip(
            angles.tolist(), table["axis_angle"].tolist(), strict=True))
        given = _from_rings(images, known, pixel_size, voltage, spherical_aberration, notes)
    u, v, table["astigmatism_angle"] = given
    table["defocus"], table["astigmatism"] = (u + v) / 2, u - v
    return table, notes


def _column(tilts: pd.DataFrame, name: str) -> np.ndarray | None:
    """Values of a column; None where it is missing or one is not finite."""
    if name not in tilts:
        return None
    values = tilts[name].to_numpy(dtype=float)
    return values if np.isfinite(values).all() else None


def _doses(tilts: pd.DataFrame, angles: np.ndarray, images: np.ndarray, notes: list[str]
           ) -> dict[str, np.ndarray]:
    """Order of acquisition, and the dose before and of each image [e-/A^2]."""
    index, dose, prior = (_column(tilts, name)
                          for name in ("acquisition_index", "dose", "prior_dose"))
    if index is None:
        index = np.arange(len(tilts)) if prior is None else prior
    order = np.argsort(index, kind="stable")
    if dose is None:
        if prior is None:
            raise ValueError("tilts: columns dose and prior_dose are both missing or not finite; "
                             "must have one of them [e-/A^2]")
        steps = np.diff(prior[order])
        dose = np.empty(len(prior))
        dose[order] = np.append(steps, np.median(steps))
        notes.append("Each image's dose is what the next one's prior dose grows by.")
        least = steps.min()
        if least > 0 and np.allclose(steps / least, np.round(steps / least), atol=_WHOLE) and (
                _from_slab(images, angles, np.full_like(dose, least))
                < _from_slab(images, angles, dose)):
            dose = np.full_like(dose, least)
            notes[-1] = (f"Each image's dose is {least:.3g} e-/A^2, the least that prior doses "
                         "grow by; where they grow by more, images were left out.")
    if dose.min() <= 0:
        raise ValueError(f"tilts: dose={dose.min():g}: must be positive [e-/A^2]")
    if prior is None:
        prior = np.empty(len(dose))
        prior[order] = np.cumsum(dose[order]) - dose[order]
    return {"acquisition_index": np.argsort(order), "prior_dose": prior, "dose": dose}


def _from_slab(images: np.ndarray, angles: np.ndarray, doses: np.ndarray) -> float:
    """Deviation of images' means over doses from those of a slab [1]; infinite where none fits."""
    try:
        fit = fit_thickness(mean_intensities(images) / doses, angles)
    except ValueError:
        return float("inf")
    return float(np.abs(np.log(fit.means / fit.expected(angles))).mean())


def _defoci(tilts: pd.DataFrame) -> np.ndarray | None:
    """Defocus U, V [A] and angle [deg] of each image, (3, n); None where the table has none."""
    u, v, angle = (_column(tilts, name)
                   for name in ("defocus_u", "defocus_v", "astigmatism_angle"))
    if u is None or v is None:
        u = v = next((given for given in (_column(tilts, "defocus"),
                                          _column(tilts, "target_defocus"))
                      if given is not None), None)
        angle = None
    if u is None or v is None:
        return None
    return np.stack([u, v, np.zeros_like(u) if angle is None else angle])


def _from_rings(images: np.ndarray, tilts: list[tuple[float, float]] | None, pixel_size: float,
                voltage: float, spherical_aberration: float, notes: list[str]) -> np.ndarray:
    """Defocus U, V [A] and angle [deg] of each image, (3, n); the median where rings are weak."""
    if pixel_size > _COARSEST:
        raise ValueError(f"tilts: no finite defocus_u and defocus_v, defocus or target_defocus: "
                         f"must be given at pixel_size={pixel_size:g} A, which shows no Thon "
                         f"rings (up to {_COARSEST:g} A)")
    search = CtfSearch(resolution=(max(30.0, 5 * pixel_size), max(4.0, 2.2 * pixel_size)))
    fits = fit_stack(images, pixel_size, voltage, spherical_aberration, search=search, tilts=tilts)
    good = np.array([fit.reliable for fit in fits])
    if not good.any():
        raise ValueError("tilts: defocus must be given [A]: no image shows reliable Thon rings")
    rows = np.array([[fit.defocus_u, fit.defocus_v, fit.astigmatism_angle] for fit in fits])
    rows[~good] = np.median(rows[good], axis=0)
    notes.append(f"Defocus is from the Thon rings of {good.sum()} images; the other "
                 f"{(~good).sum()} have the median.")
    return rows.T
