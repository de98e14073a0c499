"""Where the ice and the carbon film around it are: a lens in a hole, in any view of it."""

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike

from tem_taichi.arguments import check_array, check_number, check_positive_number, to_field
from tem_taichi.checks import one_of
from tem_taichi.device import many_threads, number, present
from tem_taichi.physics import Value

_LENS_STEP = 0.02
"""Of the radius, over which a surface is straight along a ray: off by 1e-4 tan(tilt)^2 of what
the ice grows from centre to edge."""
_KNOT_STEPS = 4
"""Along a ray, in the way from one knot to the next."""
_LEAST_STEP = 0.2
"""[A], for what is called a hole and is smaller than an atom."""


@dataclass(frozen=True)
class IceShape:
    """A layer of ice in a round hole of a carbon film; both lie about the same mid-plane.

    Its frame is the specimen's: the mid-plane is z = slope_x x + slope_y y. Without a radius
    the ice is a slab without end.
    """

    thickness: Value
    """In the hole's centre [A]."""
    edge_thickness: Value | None = None
    """At the rim and beyond it [A]; by default as in the centre."""
    hole_radius: Value = math.inf
    """[A]"""
    centre_x: Value = 0.0
    """Of the hole [A]."""
    centre_y: Value = 0.0
    """Of the hole [A]."""
    slope_x: Value = 0.0
    """Of the mid-plane, A of z per A of x."""
    slope_y: Value = 0.0
    """Of the mid-plane, A of z per A of y."""
    carbon_thickness: Value = 0.0
    """Of the film [A]; 0 = no film."""
    carbon_edge: Value = 20.0
    """Distance over which the film gets thinner at the rim [A]."""
    relief: ArrayLike | torch.Tensor | None = None
    """Factor on the thickness [1] at knots about the specimen's centre, rows along y, (my, mx):
    linear between knots, beyond them as at the nearest; None = 1 everywhere."""
    relief_heights: ArrayLike | torch.Tensor | None = None
    """Of the mid-plane at the same knots, above that which the slopes give [A]; None = 0."""
    relief_spacing: Value = 1.0
    """Between knots [A]."""
    absorption: ArrayLike | torch.Tensor | None = None
    """What the ice takes from the beam over what ice does [1], in the middles of layers of equal
    thickness from below, at knots about the specimen's centre, rows along y, (layers, my, mx):
    linear in between, beyond as at the nearest; None = 1 everywhere."""
    absorption_spacing: Value = 1.0
    """Between knots along x and y [A]."""

    def __post_init__(self) -> None:
        for name in ("thickness", "edge_thickness", "carbon_thickness"):
            if name != "edge_thickness" or self.edge_thickness is not None:
                check_number(name, getattr(self, name), "A", 0.0)
        for name in ("centre_x", "centre_y"):
            check_number(name, getattr(self, name), "A")
        for name in ("slope_x", "slope_y"):
            check_number(name, getattr(self, name), "1", -100.0, 100.0)
        check_number("hole_radius", self.hole_radius, "A", above=0.0, high=math.inf)
        check_positive_number("carbon_edge", self.carbon_edge, "A")
        check_positive_number("relief_spacing", self.relief_spacing, "A")
        if self.relief is not None:
            knots = to_field("relief", self.relief)
            check_array("relief", knots, ("my", "mx"), "1")
            if min(knots.shape) < 2:
                raise ValueError(f"relief of shape {tuple(knots.shape)}: must be at least 2 x 2")
            if not number(knots.detach().min()) > 0:
                raise ValueError("relief: must be positive everywhere [1]")
        check_positive_number("absorption_spacing", self.absorption_spacing, "A")
        if self.absorption is not None:
            taken = to_field("absorption", self.absorption)
            check_array("absorption", taken, ("layers", "my", "mx"), "1")
            if min(taken.shape) < 2:
                raise ValueError(f"absorption of shape {tuple(taken.shape)}: must be at least "
                                 "2 x 2 x 2")
            if not number(taken.detach().min()) >= 0:
                raise ValueError("absorption: must not be negative anywhere [1]")
        if self.relief_heights is not None:
            heights = to_field("relief_heights", self.relief_heights)
            wanted = None if self.relief is None else to_field("relief", self.relief).shape
            if heights.shape != wanted:
                raise ValueError(f"relief_heights of shape {tuple(heights.shape)}: must be that of "
                                 f"relief, {None if wanted is None else tuple(wanted)}")

    @property
    def knots(self) -> torch.Tensor | None:
        """The relief as a tensor of the device in use, (2, my, mx): factors and heights."""
        if self.relief is None:
            return None
        factors = to_field("relief", self.relief)
        heights = torch.zeros_like(factors) if self.relief_heights is None else to_field(
            "relief_heights", self.relief_heights)
        return torch.stack([factors, heights])


def _relative_radius(shape: IceShape, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(rho / R)^2 about the hole's centre."""
    return ((x - shape.centre_x) ** 2 + (y - shape.centre_y) ** 2) / shape.hole_radius**2


def thickness_at(shape: IceShape, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Thickness of the ice across the mid-plane, along the specimen's z [A].

    centre + (edge - centre) rho^2 / R^2, and that of the edge beyond R. The carbon film takes
    the middle of it where there is one, see `fill`.

    Args:
        shape: of the ice.
        x: from the specimen's centre [A], any shape.
        y: the same.
    """
    edge = shape.thickness if shape.edge_thickness is None else shape.edge_thickness
    part = _relative_radius(shape, x, y).clamp(max=1)
    lens = shape.thickness + (edge - shape.thickness) * part
    knots = shape.knots
    return lens if knots is None else lens * at_knots(knots[0], shape.relief_spacing, x, y)


def at_knots(knots: torch.Tensor, spacing: Value, x: torch.Tensor, y: torch.Tensor
             ) -> torch.Tensor:
    """Linear between numbers at knots about the origin, and beyond them as at the nearest.

    Args:
        knots: (my, mx).
        spacing: between them [A].
        x: of points [A], any shape.
        y: the same.
    """
    return _linear(knots, (y, x), (spacing, spacing))


def absorption_at(shape: IceShape, x: torch.Tensor, y: torch.Tensor, height: torch.Tensor
                  ) -> torch.Tensor:
    """What the ice takes from the beam over what ice does [1].

    Args:
        shape: of the ice, with `absorption`.
        x: of points [A], any shape.
        y: the same.
        height: the same, above the mid-plane along z [A].
    """
    knots = to_field("absorption", shape.absorption)
    return _linear(knots, (height, y, x), (
        shape.thickness / len(knots), shape.absorption_spacing, shape.absorption_spacing))


def _linear(knots: torch.Tensor, places: tuple[torch.Tensor, ...], spacings: tuple[Value, ...]
            ) -> torch.Tensor:
    """Linear between knots about the origin along each axis [A], and beyond as at the nearest."""
    low, part = zip(*(_between_knots(value, n, spacing) for value, n, spacing in zip(
        torch.broadcast_tensors(*places), knots.shape, spacings, strict=True)), strict=True)

    def between(axis: int, index: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if axis == len(low):
            return knots[index]
        return (between(axis + 1, (*index, low[axis])) * (1 - part[axis])
                + between(axis + 1, (*index, low[axis] + 1)) * part[axis])

    return between(0, ())


def _between_knots(value: torch.Tensor, n: int, spacing: Value
                   ) -> tuple[torch.Tensor, torch.Tensor]:
    """Knot before a place [A] along an axis of n, and how far it is on the way to the next."""
    place = (value / spacing + (n - 1) / 2).clamp(0, n - 1)
    before = place.detach().floor().clamp(max=n - 2)
    return before.long(), place - before


def carbon_at(shape: IceShape, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Thickness of the carbon film, along the specimen's z [A].

    From zero to carbon_thickness by 3 f^2 - 2 f^3 over the edge's width about the rim.

    Args:
        shape: of the ice and its film.
        x: from the specimen's centre [A], any shape.
        y: the same.
    """
    if not math.isfinite(number(shape.hole_radius)):
        return torch.zeros_like(x)
    # sqrt has no gradient in the hole's centre, where the film's is zero anyway.
    rho = _relative_radius(shape, x, y).clamp(min=1e-6).sqrt() * shape.hole_radius
    part = ((rho - shape.hole_radius) / shape.carbon_edge + 0.5).clamp(0, 1)
    return shape.carbon_thickness * part**2 * (3 - 2 * part)


def _thicknesses(
    shape: IceShape, material: str, x: torch.Tensor, y: torch.Tensor
) -> list[torch.Tensor]:
    """Thickness of a layer about the mid-plane and, if any, of the one that is cut out of it."""
    film = [carbon_at(shape, x, y)] if has_film(shape) else []
    if material == "carbon":
        return film
    ice = thickness_at(shape, x, y)
    return [ice, *(torch.minimum(ice, part) for part in film)]


def has_film(shape: IceShape) -> bool:
    """Whether there is a film of carbon, which is around a hole."""
    return present(shape.carbon_thickness) and is_lens(shape)


def is_lens(shape: IceShape) -> bool:
    """Whether there is a hole, and no slab without end."""
    return math.isfinite(number(shape.hole_radius))


def is_slab(shape: IceShape) -> bool:
    """Whether its surfaces are planes without end."""
    return shape.relief is None and not is_lens(shape)


def _slope(shape: IceShape, rotation: torch.Tensor) -> torch.Tensor:
    """Growth of the height above the mid-plane along the image's x, y and z, shape (3,)."""
    return rotation[:, 2] - shape.slope_x * rotation[:, 0] - shape.slope_y * rotation[:, 1]


def _positive(first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Beginning and end of the part of [0, 1] where a line from first to last is positive."""
    fall = first - last
    fall = torch.where(fall.abs() < 1e-6, torch.full_like(fall, 1e-6), fall)
    root = (first / fall).clamp(0, 1)
    return torch.where(fall < 0, root, 0.0), torch.where(fall < 0, 1.0, root)


def _between(
    old: tuple[torch.Tensor, torch.Tensor], new: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor | float:
    """Part of a step between two surfaces, from the distances to both at its ends."""
    if not many_threads():  # to look would wait for a GPU, for longer than the rest takes
        if min(number(end.min()) for end in (*old, *new)) >= 0:
            return 1.0
        if any(max(number(a.max()), number(b.max())) <= 0 for a, b in zip(old, new, strict=True)):
            return 0.0
    low, high = (_positive(a, b) for a, b in zip(old, new, strict=True))
    return (torch.minimum(low[1], high[1]) - torch.maximum(low[0], high[0])).clamp(min=0)


def steps_of(shape: IceShape, depth: float) -> int:
    """How many steps of a ray through a lens are straight enough over a depth [A]."""
    step = max(_LENS_STEP * number(shape.hole_radius), _LEAST_STEP)
    if shape.relief is not None:
        step = min(step, max(number(shape.relief_spacing) / _KNOT_STEPS, _LEAST_STEP))
    if has_film(shape):
        step = min(step, max(number(shape.carbon_edge) / 2, _LEAST_STEP))
    return max(1, math.ceil(depth / step))


def part_inside(
    shape: IceShape, material: str, rotation: torch.Tensor, x: torch.Tensor, y: torch.Tensor,
    z0: torch.Tensor, depth: float,
) -> torch.Tensor:
    """Part of rays in a material; surfaces are straight in a step.

    Args:
        shape: of the ice and its hole.
        material: "ice" or "carbon".
        rotation: specimen to image frame, (3, 3).
        x: of the rays in the image's frame [A]; broadcasts with y.
        y: see x.
        z0: where they begin [A].
        depth: over which they are followed [A].

    Returns:
        Tensor from 0 to 1; differentiable in the shape, the rotation, x and y.
    """
    one_of("material", material, ("ice", "carbon"))
    slope = _slope(shape, rotation)
    if material == "carbon" and not is_lens(shape):  # which is around a hole
        return torch.zeros(torch.broadcast_shapes(x.shape, y.shape)).to(slope)
    if is_slab(shape):
        middle = -(x * slope[0] + y * slope[1]) / slope[2]
        reach = shape.thickness / (2 * slope[2].abs())
        inside = torch.minimum(middle + reach, z0 + depth) - torch.maximum(middle - reach, z0)
        return inside.clamp(min=0) / depth
    n_steps, knots = steps_of(shape, depth), shape.knots
    out = torch.zeros(torch.broadcast_shapes(x.shape, y.shape), dtype=x.dtype, device=x.device)
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    for n in range(n_steps + 1):
        z = z0 + depth * n / n_steps
        rise = x * slope[0] + (y * slope[1] + z * slope[2])
        here_x, here_y = (x * rotation[0, i] + (y * rotation[1, i] + z * rotation[2, i])
                          for i in (0, 1))
        if knots is not None and shape.relief_heights is not None:
            rise = rise - at_knots(knots[1], shape.relief_spacing, here_x, here_y)
        after = [(part / 2 - rise, part / 2 + rise)
                 for part in _thicknesses(shape, material, here_x, here_y)]
        for sign, old, new in zip((1, -1), before, after, strict=False):
            out = out + sign / n_steps * _between(old, new)
        before = after
    return out


def path_length(
    shape: IceShape, rotation: torch.Tensor, x: torch.Tensor, y: torch.Tensor,
    material: str = "ice",
) -> torch.Tensor:
    """Way of the beam through the ice, or through the carbon film.

    Exact for a slab: its thickness over the cosine of the tilt. Where the ice takes more or less
    from the beam, it is the way through ice that would take as much.

    Args:
        shape: of the ice and its hole.
        rotation: specimen to image frame, (3, 3); the mid-plane is not along the beam.
        x: position in the image's frame [A]; broadcasts with y.
        y: see x.
        material: "ice" or "carbon".

    Returns:
        Path [A]; differentiable in the shape and the rotation.

    Raises:
        ValueError: for another material.
    """
    x, y = to_field("x", x), to_field("y", y)
    slope = _slope(shape, rotation)
    # In steps, so that the points of a ray stay where they are while a surface moves.
    depth = 50.0 * math.ceil(1.01 * thickest(shape) / abs(float(slope[2].detach())) / 50.0 + 0.02)
    middle = -(x * slope[0] + y * slope[1]) / slope[2]
    if shape.absorption is None or material != "ice":
        return depth * part_inside(shape, material, rotation, x, y, middle - depth / 2, depth)
    apart = min(number(shape.thickness) / len(to_field("absorption", shape.absorption)),
                number(shape.absorption_spacing))
    count = math.ceil(_KNOT_STEPS * depth / apart + 0.02)  # none more where a surface moves a bit
    step, total = depth / count, torch.zeros_like(middle)
    for n in range(count):
        begin = middle - depth / 2 + n * step
        z = begin + step / 2
        here_x, here_y = (x * rotation[0, i] + (y * rotation[1, i] + z * rotation[2, i])
                          for i in (0, 1))
        total = total + (part_inside(shape, material, rotation, x, y, begin, step)
                         * absorption_at(shape, here_x, here_y, (z - middle) * slope[2]))
    return step * total


def depth_range(
    shape: IceShape, rotation: torch.Tensor, width: float, height: float
) -> tuple[float, float]:
    """Least and largest depth of ice and film over a field about the image's centre [A].

    Args:
        shape: of the ice and its hole.
        rotation: specimen to image frame, (3, 3).
        width: of the field in x [A].
        height: in y [A].
    """
    x, y, z = (float(part) for part in _slope(shape, rotation).detach())
    reach = (abs(x) * width / 2 + abs(y) * height / 2 + thickest(shape) / 2) / abs(z)
    return -reach, reach


def thickest(shape: IceShape) -> float:
    """Most of ice or film anywhere, with how far it lies beside its plane [A], or more."""
    given = [number(value) for value in (shape.thickness, shape.edge_thickness)
             if value is not None]
    return max(max(given) * relief_range(shape)[1],
               number(shape.carbon_thickness)) + 2 * highest(shape)


def highest(shape: IceShape) -> float:
    """Farthest that the relief puts the mid-plane above or below where it were [A]."""
    knots = shape.knots
    return 0.0 if knots is None else number(knots[1].detach().abs().max())


def relief_range(shape: IceShape) -> tuple[float, float]:
    """Least and largest factor of the relief [1]."""
    knots = shape.knots
    if knots is None:
        return 1.0, 1.0
    low, high = torch.aminmax(knots[0].detach())
    return number(low), number(high)
