"""Picture of a twin's fits: means over tilt, and spectra of the background with their model."""

import numpy as np
from matplotlib.figure import Figure

from tem_taichi.estimate.twin import Twin

_SPECTRA = 4


def twin_figure(twin: Twin) -> Figure:
    """Draw what the real series shows and what the twin was fitted to.

    Args:
        twin: from `make_twin`.
    """
    fit, spectra, crowd = twin.thickness, twin.spectra, twin.crowd
    figure = Figure(figsize=(9.5, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    at = np.linspace(fit.tilt_angles.min(), fit.tilt_angles.max(), 200)
    left.plot(at, fit.expected(at), color="0.4")
    left.plot(fit.tilt_angles[fit.used], fit.means[fit.used], "o", markersize=4, label="used")
    if not fit.used.all():
        left.plot(fit.tilt_angles[~fit.used], fit.means[~fit.used], "x", label="not used")
    left.set(xlabel="tilt [deg]", ylabel="mean at equal dose [counts]",
             title=f"t / L = {fit.ratio:.3f}")
    left.legend()
    seen = np.flatnonzero(np.isfinite(spectra.ratio).all(axis=1))
    seen = seen[np.argsort(fit.tilt_angles[seen], kind="stable")]
    for number, row in enumerate(seen[np.unique(np.linspace(0, len(seen) - 1, min(
            _SPECTRA, len(seen))).round().astype(int))]):
        colour = f"C{number}"
        right.semilogy(spectra.w, spectra.ratio[row], ".", markersize=4, color=colour)
        right.semilogy(spectra.w, crowd.model[row], color=colour,
                     label=f"{fit.tilt_angles[row]:.0f}°")
    right.set(xlabel="w [cycles/pixel]", ylabel="noise power / mean [counts]", xlim=(0, 0.5),
              title="background, and its model")
    right.legend(fontsize=8)
    return figure
