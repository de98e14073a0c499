"""Changes of a tilt series' poses that change no gauge: the numbers that an alignment fits."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from tem_taichi.device import as_tensor

NAMES = ("shift_x", "shift_y", "tilt_angle", "axis_angle")
"""Numbers of a pose: [A], [A], [deg], [deg]."""
KINDS: Mapping[str, tuple[str, ...]] = {
    "shifts": ("shift_x", "shift_y"), "axis": ("axis_angle",), "tilts": ("tilt_angle",),
    "magnification": ("magnification",)}
"""What may be refined, and its columns; the last by beads alone."""
DEVIATIONS: Mapping[str, float] = {"axis_angle": 3.0, "tilt_angle": 1.0, "magnification": 0.01}
"""Of a stated axis and tilt [deg], and of a magnification."""


def poses_of(tilts: pd.DataFrame) -> dict[str, Tensor]:
    """Columns of NAMES; shifts are 0 where the table has none.

    Args:
        tilts: table of `series_of`.
    """
    return {name: as_tensor(tilts[name].to_numpy(float).copy() if name in tilts
                            else [0.0] * len(tilts)) for name in NAMES}


class Free:
    """The numbers that are fitted, and what is known of them before any image is seen."""

    def __init__(self, start: Mapping[str, Tensor], kinds: Sequence[str], within: float,
                 known: Tensor | None = None) -> None:
        """Changes of some poses.

        Args:
            start: the poses that are stated.
            kinds: of KINDS: what may change.
            within: deviation of a stated shift [A].
            known: information on the changes of each number of each image, or of the axis once,
                beside the stated deviations, as of `own_information`; None = nothing.
        """
        self.start, self.within = dict(start), within
        self.names = [name for kind in KINDS if kind in kinds for name in KINDS[kind]]
        n = len(start["tilt_angle"])
        parts = [torch.ones(n, 1) if name == "axis_angle" else torch.eye(n) for name in self.names]
        spread = torch.block_diag(*parts).double()
        self.deviations = torch.cat([torch.full((part.shape[1],), DEVIATIONS.get(name, within))
                                     for name, part in zip(self.names, parts, strict=True)]
                                    ).double()
        own = torch.linalg.lstsq(spread, self._gauge(n)).solution
        if own.shape[1]:
            basis = torch.linalg.qr(own, mode="complete")[0][:, own.shape[1]:]
        else:
            basis = torch.eye(spread.shape[1], dtype=torch.float64)
        self.basis, self.spread = basis, spread @ basis
        self.known = torch.diag(self.deviations**-2)
        if known is not None:
            self.known = self.known + known

    def _gauge(self, n: int) -> Tensor:
        """Changes that no image can tell, (k n, g)."""
        axis, tilt = (torch.deg2rad(self.start[name].double()).cpu() for name in (
            "axis_angle", "tilt_angle"))
        c, s, zero = torch.cos(axis), torch.sin(axis), torch.zeros(n).double()
        ways = []
        if "shift_x" in self.names:
            for x, y in ((c * torch.cos(tilt), s * torch.cos(tilt)), (-s, c),
                         (c * torch.sin(tilt), s * torch.sin(tilt))):
                ways.append({"shift_x": x, "shift_y": y})
        if "tilt_angle" in self.names:
            ways.append({"tilt_angle": zero + 1})
        if "magnification" in self.names:
            ways.append({"magnification": zero + 1})  # and 1 / that of the specimen and the shifts
        columns = [torch.cat([way.get(name, zero) for name in self.names]) for way in ways]
        return torch.stack(columns, 1) if columns else zero.new_zeros((len(self.names) * n, 0))

    def poses(self, numbers: Tensor) -> dict[str, Tensor]:
        """At some numbers."""
        changes = (self.spread @ numbers.cpu()).reshape(len(self.names), -1)
        return {**self.start, **{name: self.start[name] + change.to(self.start[name])
                                 for name, change in zip(self.names, changes, strict=True)}}

    def stated(self) -> Tensor:
        """The information on the numbers before any image is seen."""
        return self.basis.T @ self.known @ self.basis

    def own_information(self, information: Tensor) -> Tensor:
        """That on changes of each number of each image, or of the axis once; 0 of the gauge.

        Args:
            information: on the numbers, (p, p).
        """
        return self.basis @ information @ self.basis.T

    def bars(self, covariance: Tensor) -> Tensor:
        """Deviations of the poses' numbers, (k, n)."""
        squares = (self.spread @ covariance * self.spread).sum(1)
        return squares.clamp(min=0).sqrt().reshape(len(self.names), -1)

    def prior(self, numbers: Tensor) -> Tensor:
        """Minus the log-probability by what is known before."""
        return numbers @ self.stated() @ numbers / 2
