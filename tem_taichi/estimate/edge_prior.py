"""Pictures by total variation: the noise law's own likelihood, minimised pixel by pixel.

Keeps edges between flat parts, which `shrinkage` rings at; costs a fit.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tem_taichi.estimate.recording import Recording
from tem_taichi.inverse.minimise import Fit, Optimiser, Values, minimise_parts
from tem_taichi.inverse.priors import total_variation
from tem_taichi.noise.detector import expected_counts
from tem_taichi.noise.likelihood import log_density

_CORNER = 0.1
"""Of the scale: gradients below it cost their square, which lbfgs can follow."""


def fit_edges(recording: Recording, scale: float, start: Tensor, *, held_out: int | None = None,
              steps: int = 60, state_file: Path | None = None) -> Fit:
    """The most probable picture where gradients have Laplace's law.

    Args:
        recording: its parts are the exposures that are fitted.
        scale: of the gradients between neighbours, relative to the mean.
        start: where to begin, electrons of the whole recording, blurred as the camera does or not,
            (ny, nx).
        held_out: part that only judges: the picture is the one that explains it best, and the fit
            ends when it is explained no better.
        steps: of lbfgs at most.
        state_file: see `minimise`.

    Returns:
        The fit; `picture_of` turns its values into electrons.
    """
    mean = float(recording.electrons.mean())
    detector, parts = recording.law.detector, recording.parts
    gain = float(torch.as_tensor(detector.gain))
    doses = [float(part.mean()) for part in parts]

    def misfit(values: Values, which: Sequence[int]) -> Iterable[Tensor]:
        relative = values["log"].exp()
        if held_out is None:  # of independent parts the sum tells as much, in a single transform
            yield -_log_probability(recording.electrons, relative, mean)
            return
        dose = sum(doses[n] for n in which)
        yield -_log_probability(parts[list(which)].sum(0), relative, dose)

    def _log_probability(electrons: Tensor, relative: Tensor, dose: float) -> Tensor:
        expected = expected_counts(relative, pixel_size=1, dose=dose, detector=detector)
        # Ringing at the edges of the MTF may not forbid what was counted.
        expected = expected.clamp(min=1e-3 * dose * gain)
        return log_density(gain * electrons, expected, relative * dose, detector)

    def terms(values: Values, which: Sequence[int]) -> Iterable[Tensor]:
        yield from misfit(values, which)
        yield total_variation(values["log"].exp(), scale, _CORNER * scale)

    fitted = [n for n in range(len(parts)) if n != held_out]
    begin = (start / mean).clamp(min=0.05).log()
    # A pixel's logarithm is known to the inverse root of its electrons.
    return minimise_parts(
        terms, {"log": begin}, fitted, [] if held_out is None else [held_out],
        optimiser=Optimiser(steps=steps, tolerance=1e-7, patience=5, history_size=8),
        judge=misfit, state_file=state_file, scales={"log": max(mean, 1e-3) ** -0.5})


def picture_of(fit: Fit, recording: Recording) -> Tensor:
    """Electrons of a whole recording that a fit says, without the camera's blur."""
    return fit.values["log"].exp() * recording.electrons.mean()
