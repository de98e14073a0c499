"""How far an estimated picture is from the truth, pixel by pixel, as far as the data tell."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.estimate.denoise import Estimate, cropped, estimate, judged, whole
from tem_taichi.estimate.noise_law import blurred, draw, transfer
from tem_taichi.estimate.recording import Recording
from tem_taichi.estimate.shrinkage import gaussian
from tem_taichi.streams import Key

_WIDTH = 3.0
"""Pixels over which squared deviations of a few draws are averaged."""
_SURE = 2.0
"""Standard errors by which the measured error must be above 0, and above the scatter to count."""


@dataclass(frozen=True, eq=False)
class ErrorMap:
    """Standard deviation of a picture's error [electrons]."""

    values: Tensor
    """(ny, nx)."""
    measured: float | None
    """Root mean squared error by what was held out, blurred as the camera does; None = it is less
    than chance."""
    factor: float
    """By which the scatter among draws was multiplied; 1 where what was measured may be chance."""


def error_map(chosen: Estimate, recording: Recording, *, keep: bool = True, draws: int = 4,
              seed: int = 0) -> ErrorMap:
    """Scatter of the picture about itself, recorded and estimated anew.

    The scatter says where errors are, but not what the prior takes from the picture each time. A
    part that was held out knows that, on the average over pixels: its squared distance to the
    prediction is the noise's variance and the squared error. Where that is surely more than the
    scatter, the map is multiplied to have it as its mean.

    Args:
        chosen: of `denoise.best`, a prior or another estimate that is no fit of samples.
        recording: of the picture.
        keep: whether the error is of the picture as the camera blurs it.
        draws: recordings made anew, 1 or more.
        seed: of their noise.
    """
    def found(electrons: Tensor) -> Tensor:
        return whole(chosen.name, chosen.strength, replace(recording, electrons=electrons),
                     chosen.steps, keep)

    def seen(picture: Tensor) -> Tensor:
        return picture if keep else blurred(picture, recording.law)

    plain = chosen.electrons if keep else found(recording.electrons)
    squared, seen_squared = torch.zeros_like(plain), 0.0
    for number in range(draws):
        again = found(draw(chosen.electrons, recording.law,
                           Key(seed, "trials", number).generator(kind=2)))
        squared += (again - plain).square() / draws
        seen_squared += float((seen(again) - seen(plain)).square().mean()) / draws
    measured, error = measured_error(chosen, recording)
    certain = measured > _SURE * error
    more = measured - _SURE * error > seen_squared > 0
    factor = (measured / seen_squared) ** 0.5 if more else 1.0
    smoothed = gaussian(squared, recording.law, _WIDTH).clamp(min=0)
    return ErrorMap(factor * smoothed.sqrt(), measured**0.5 if certain else None, factor)


def measured_error(chosen: Estimate, recording: Recording) -> tuple[float, float]:
    """Mean squared error of an estimate from all parts but one, and its standard error.

    Scaled to the whole recording [electrons^2], of which it saw a little less.
    """
    if chosen.name == "total_variation":
        return _of_fit(chosen, recording)
    where, middle = judged(recording), cropped(recording, judged(recording))
    found = []
    for part in range(len(recording.parts)):
        seen = recording.without(part)
        predicted = estimate(chosen.name, chosen.strength, seen, recording)[where]
        found.append(_squared(middle, part, predicted))
    mean = sum(one for one, _ in found) / len(found)
    return mean, (sum(error**2 for _, error in found) ** 0.5) / len(found)


def _of_fit(chosen: Estimate, recording: Recording) -> tuple[float, float]:
    """The same of total variation, by one part in the middle."""
    middle = cropped(recording, judged(recording))
    fitted = replace(middle, electrons=middle.without(0), parts=middle.parts[1:])
    predicted = whole(chosen.name, chosen.strength, fitted, chosen.steps)
    return _squared(middle, 0, predicted)


def _squared(recording: Recording, part: int, predicted: Tensor) -> tuple[float, float]:
    """Squared distance of a part to its prediction, without the noise's variance, of the whole."""
    held, seen = recording.parts[part], recording.without(part)
    share = held.sum() / seen.sum()
    shape = (held.shape[0], held.shape[1])
    w, half = transfer(recording.law, shape)[1], torch.full((shape[1] // 2 + 1,), 2.0)
    half[0] = 1
    if shape[1] % 2 == 0:
        half[-1] = 1
    power = (w * half.to(w)).sum() / held.numel()  # a pixel's variance for each electron
    rest = (predicted * share - held).square() - held * power
    scale = float(recording.electrons.sum() / held.sum()) ** 2
    return scale * float(rest.mean()), scale * float(rest.std()) / held.numel() ** 0.5
