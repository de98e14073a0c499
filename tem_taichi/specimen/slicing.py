"""Particles in ice as slices of projected potential, in a view."""

from collections.abc import Iterator, Sequence

import torch

from tem_taichi.device import as_tensor, current, number, present
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, Value
from tem_taichi.recompute import tensors_in
from tem_taichi.specimen.absorption import imaginary_potential
from tem_taichi.specimen.choice import drawn_as_points, drawn_as_volume
from tem_taichi.specimen.copies import add_copies, slices_reached
from tem_taichi.specimen.damage import damping
from tem_taichi.specimen.depth import compensation, depth_for, spare
from tem_taichi.specimen.grains import added, with_structure
from tem_taichi.specimen.ice_shape import depth_range
from tem_taichi.specimen.kinds import VACUUM, Kind, Solvent, parts_of
from tem_taichi.specimen.layer import Ice
from tem_taichi.specimen.points import add_points
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import render
from tem_taichi.specimen.splatting import narrow
from tem_taichi.specimen.view import View
from tem_taichi.specimen.volumes import Box, Volume, box_for, volume_for

BATCH = 1_000_000
"""Scatterers rendered at once: bounds the memory of crowded scenes."""

_ROUNDING = 1e-3
"""Of a slice, by which a place in single precision may be off."""


def depths(
    kind: Kind, pose: Poses, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest z [A] of the scatterers of each copy, after a rotation, (copies,).

    Args:
        kind: of particle.
        pose: where its copies are.
        rotation: specimen to image frame, (3, 3).
    """
    axis = rotation[2].detach().to(kind.positions)
    centres = as_tensor(pose.positions).detach() @ axis
    rows = axis @ as_tensor(pose.rotations).detach()  # (copies, 3)
    if len(centres) == 0:
        return centres, centres
    ends = kind.outermost
    reach = [(z.amin(1), z.amax(1)) for z in
             (part @ ends.T for part in rows.split(max(1, BATCH // len(ends))))]
    low, high = (torch.cat(bound) for bound in zip(*reach, strict=True))
    return centres + low, centres + high


def extent(
    kinds: tuple[Kind, ...], poses: tuple[Poses, ...], ice: Ice, view: View
) -> tuple[float, float]:
    """Least and largest z [A] of all scatterers, and of ice with a structure; (0, 0) if none.

    Where slices share their atoms, the outermost atoms too need a slice on either side.
    """
    ends = [depths(kind, pose, view.rotation)
            for kind, pose in zip(kinds, poses, strict=True)
            if len(pose.positions)]
    more = spare(depth_of(kinds, poses, view), view.slice_thickness)
    bounds = [(float(low.min()) - more, float(high.max()) + more) for low, high in ends]
    if ice.structured:
        bounds.append(_ice_ends(ice, view))
    return (min((low for low, _ in bounds), default=0.0),
            max((high for _, high in bounds), default=0.0))


def _ice_ends(ice: Ice, view: View) -> tuple[float, float]:
    """Least and largest z [A] of the ice in the field, which is shifted against the ice."""
    width, height = view.field
    x, y = view.shift.detach().abs().tolist()
    return depth_range(ice.layer, view.rotation, width + 2 * x, height + 2 * y)


def filled(
    kinds: tuple[Kind, ...], poses: tuple[Poses, ...], ice: Ice, view: View
) -> torch.Tensor:
    """Slices of a view that a copy reaches, or ice with a structure; booleans (n_slices,).

    Args:
        kinds: of particles.
        poses: where the copies of each kind are.
        ice: around them.
        view: how it lies and how it is sliced.
    """
    depth = depth_of(kinds, poses, view)
    ends = [_reach(kind, pose, depth, view) for kind, pose in zip(kinds, poses, strict=True)]
    if ice.structured:
        low, high = _ice_ends(ice, view)
        ends.append(_slices_between(as_tensor([low]), as_tensor([high]), view))
    # Copies that begin in a slice, less those that end before it.
    change = torch.zeros(view.n_slices + 1, dtype=torch.int64, device=current().torch_device)
    for first_and_end in ends:
        for slice_of, sign in zip(first_and_end, (1, -1), strict=True):
            slice_of = slice_of.long().clamp(0, view.n_slices)
            change.scatter_add_(0, slice_of, torch.full_like(slice_of, sign))
    return change.cumsum(0)[:-1] > 0


def _reach(
    kind: Kind, pose: Poses, depth: str, view: View
) -> tuple[torch.Tensor, torch.Tensor]:
    """First slices that copies are drawn in, and those behind the last, (copies,).

    A little more than they need: rounding puts nothing into a slice that is left out.
    """
    if drawn_as_volume(kind, len(pose.positions), view):
        box = box_for(kind, view.pixel_size)
        z = _centres(box, pose, view)[1][:, 2].detach()
        return (slices_reached(box.radius, z - _ROUNDING, view)[0],
                slices_reached(box.radius, z + _ROUNDING, view)[1])
    low, high = depths(kind, pose, view.rotation)
    more = spare(depth, view.slice_thickness) + _ROUNDING * view.slice_thickness
    return _slices_between(low - more, high + more, view)


def _slices_between(
    low: torch.Tensor, high: torch.Tensor, view: View
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices that hold z of low [A], and those behind the ones that hold high."""
    first, last = (((z - view.entrance) / view.slice_thickness).floor() for z in (low, high))
    return first, last + 1


def depth_of(kinds: tuple[Kind, ...], poses: tuple[Poses, ...], view: View) -> str:
    """How slices share atoms: as the view says, or smoothly where one is asked to move in z."""
    return depth_for(view.depth, view.rotation,
                     *tensors_in(tuple(kind.positions for kind in kinds)),
                     *tensors_in(poses))


def slices(
    kinds: tuple[Kind, ...], poses: tuple[Poses, ...], ice: Ice, view: View, first: int, count: int
) -> torch.Tensor:
    """Projected potential of slices first .. first + count - 1 of a view.

    Args:
        kinds: of particles.
        poses: where the copies of each kind are.
        ice: around them.
        view: how it lies and how it is sliced.
        first: number of the first slice.
        count: how many.

    Returns:
        Band-limited slices (count, ny, nx) [V A] relative to the ice; complex where particles
        absorb by their composition, or where the view's Q is theirs alone, beside ice that has
        slices of its own: a film of carbon attenuates each ray, and grains scatter.
    """
    absorption = contrast = None
    if view.amplitude_contrast is None:
        if ice.mean_free_path is not None:
            absorption = imaginary_potential(ice.mean_free_path, view.voltage)
    elif ice.structured:
        contrast = as_tensor(view.amplitude_contrast)
    names = ["group"] + (["absorbing"] if absorption is not None else [])
    solvent = _only_in_sums(ice, absorption is not None)
    if solvent is None or solvent.absorption:
        names.append("displaced")
    layers = _splatted(kinds, poses, view, first, count, names, solvent or VACUUM)
    scale = SCATTERING_TO_POTENTIAL / view.pixel_size**2
    left = _factor(view, depth_of(kinds, poses, view)) if layers else None
    device = current()
    potential = absorbing = taken = both = None
    if layers:
        displaced = layers.pop("displaced", None)
        # Narrowing works in place, on arrays that are needed nowhere else.
        potential = added(layers.pop("group"), displaced, ice.potential)
        if absorption is None:
            potential = narrow(potential, scale, left)
        else:
            absorbing = _scaled(layers.pop("absorbing"), ice.particle_absorption)
            absorbing = _scaled(added(absorbing, displaced, 1.0), absorption)
            both = torch.complex(potential, absorbing)
            del potential, absorbing  # room for the transforms
            both = narrow(both, scale, left)
            potential, absorbing = both.real, both.imag
        if ice.structured and displaced is not None:
            # As splatted: it only says where grains are, and narrowing would make it ring.
            taken = _scaled(displaced, -scale / view.slice_thickness)
    if contrast is not None and potential is not None:
        absorbing = potential * contrast
        potential = _scaled(potential, (1 - contrast**2).sqrt())
    if potential is None:
        potential = torch.zeros((count, *view.shape), dtype=device.dtype,
                                device=device.torch_device)
    if ice.structured:
        potential = with_structure(potential, ice, view, first, taken)
    if both is not None and not torch.is_grad_enabled():
        return both
    if absorbing is None and contrast is not None:
        absorbing = torch.zeros_like(potential)
    return potential if absorbing is None else torch.complex(potential, absorbing)


def _only_in_sums(ice: Ice, absorbs: bool) -> Solvent | None:
    """What goes with the other fields, if what kinds displace is needed for nothing else."""
    if not present(ice.potential):
        return VACUUM
    factors = (ice.potential, ice.particle_absorption)
    if ice.structured or any(_wants_gradient(value) for value in factors):
        return None
    stronger = number(ice.particle_absorption)
    if absorbs and stronger == 0:
        return None
    return Solvent(number(ice.potential), 1 / stronger if absorbs else 0.0)


def _wants_gradient(value: Value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _scaled(layer: torch.Tensor, factor: Value) -> torch.Tensor:
    """Layer factor, in place where gradients are off."""
    if torch.is_grad_enabled():
        return layer * factor
    return layer if isinstance(factor, float) and factor == 1 else layer.mul_(factor)


def _factor(view: View, depth: str) -> torch.Tensor | None:
    """On the spectrum of particles: what damage leaves, and what sharing them takes from waves."""
    factor = None
    if view.propagates and view.n_slices > 1:
        factor = compensation(depth, view.shape, view.pixel_size, view.slice_thickness,
                              view.voltage)
    if present(view.exposure):
        left = damping(view.shape, view.pixel_size, view.exposure, view.voltage)
        factor = left if factor is None else factor * left
    return factor


def _splatted(
    kinds: tuple[Kind, ...], poses: tuple[Poses, ...], view: View, first: int, count: int,
    names: list[str], solvent: Solvent,
) -> dict[str, torch.Tensor]:
    """What `Kind` names, summed over all copies in some slices; empty where there are none.

    With others goes of what they displace what the solvent says: with two of them only in volumes,
    which makes these fewer, since atoms would have to be drawn once more.
    """
    depth = depth_of(kinds, poses, view)
    device = current()
    layers: dict[str, torch.Tensor] = {}

    def begin(names: Sequence[str]) -> None:
        for name in names:
            if name not in layers:
                layers[name] = torch.zeros((count, *view.shape), dtype=device.dtype,
                                           device=device.torch_device)

    for kind, pose in zip(kinds, poses, strict=True):
        if drawn_as_volume(kind, len(pose.positions), view):
            fields = [name for name in names if not (solvent.absorption and name == "displaced")]
            volume = volume_for(kind, view.pixel_size, fields, solvent)
            rotations, pixels = _seen(volume, pose, view, first, count)
            if len(pixels):
                begin(fields)
                drawn = add_copies(
                    [layers[name] for name in volume.names], volume, rotations, pixels,
                    view, first_slice=first, depth=depth)
                layers |= dict(zip(volume.names, drawn, strict=True))
            continue
        if drawn_as_points(kind, pose, view):
            fields = [name for name in names if not (solvent.absorption and name == "displaced")]
            copies, frames = _frames(kind, pose, view, first, count)
            if len(copies):
                begin(fields)
                add_points({name: layers[name] for name in fields}, kind, frames[copies], view,
                           first, depth, solvent)
            continue
        once = VACUUM if solvent.absorption else solvent
        for template, pixels in _in_slices(kind, pose, view, first, count):
            if len(pixels):
                begin(names)
            for name in names if len(pixels) else ():
                layers[name] = render(
                    layers[name], [part.take(template) for part in parts_of(kind, name, once)],
                    pixels, view.pixel_size, first_slice=first, n_slices=view.n_slices,
                    depth=depth)
    return layers


def _seen(
    volume: Volume, pose: Poses, view: View, first: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations, and pixels of the volume's centre, of copies in some slices and the field."""
    rotations, pixels = _centres(volume, pose, view)
    half = volume.patch // 2
    begin, end = slices_reached(volume.radius, pixels[:, 2].detach(), view)
    seen = (begin < first + count) & (end > first)
    for axis, n in enumerate((view.shape[1], view.shape[0])):
        seen = seen & (pixels[:, axis] > -half) & (pixels[:, axis] < n + half)
    copies = torch.nonzero(seen).flatten()
    return rotations[copies], pixels[copies]


def _centres(
    volume: Volume | Box, pose: Poses, view: View
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations of copies to the image, and pixels and slices of their volumes' centres."""
    rotations = view.rotation @ as_tensor(pose.rotations)
    centres = as_tensor(pose.positions) @ view.rotation.T + rotations @ volume.centre
    pixels = torch.cat([centres[:, :2] + view.shift, centres[:, 2:]], dim=1) / _scale(view)
    return rotations, pixels + _origin(view)


def _scale(view: View) -> torch.Tensor:
    """Sizes of a pixel and a slice [A], (3,)."""
    return as_tensor([view.pixel_size, view.pixel_size, view.slice_thickness])


def _origin(view: View) -> torch.Tensor:
    """Pixel and slice where the specimen's centre is, (3,)."""
    ny, nx = view.shape
    return as_tensor([nx // 2, ny // 2, -view.entrance / view.slice_thickness])


def _in_slices(
    kind: Kind, pose: Poses, view: View, first: int, count: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scatterers of a kind in some slices and the field: number in the kind, and pixels."""
    ny, nx = view.shape
    seen, frames = _frames(kind, pose, view, first, count)
    at_once = max(1, BATCH // len(kind.positions))
    for copies in seen.split(at_once):
        for begin in range(0, len(kind.positions), BATCH):
            part = kind.positions[begin:begin + BATCH]
            turns, places = frames[copies].split([3, 1], dim=2)
            pixels = (torch.einsum("cij,nj->cni", turns, part) + places.mT).reshape(-1, 3)
            inside = torch.nonzero((pixels[:, 0] > -0.5) & (pixels[:, 0] < nx - 0.5)
                                   & (pixels[:, 1] > -0.5) & (pixels[:, 1] < ny - 0.5)
                                   & (pixels[:, 2] > first - 1)
                                   & (pixels[:, 2] < first + count + 1)).flatten()
            yield inside.remainder(len(part)) + begin, pixels[inside]


def _frames(
    kind: Kind, pose: Poses, view: View, first: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of copies that may have scatterers in some slices and the field, and frames of all.

    A frame takes a kind's positions (x, y, z, 1) to column, row and slice, (copies, 3, 4).
    """
    low = view.entrance + (first - 1) * view.slice_thickness
    high = view.entrance + (first + count + 1) * view.slice_thickness
    half_x, half_y = (n * view.pixel_size / 2 for n in (view.shape[1], view.shape[0]))
    centres = as_tensor(pose.positions) @ view.rotation.T
    centres = torch.cat([centres[:, :2] + view.shift, centres[:, 2:]], dim=1)
    r = kind.radius
    seen = torch.nonzero((centres[:, 2] > low - r) & (centres[:, 2] < high + r)
                         & (centres[:, 0].abs() < half_x + r)
                         & (centres[:, 1].abs() < half_y + r)).flatten()
    scale = _scale(view)
    rotations = view.rotation @ as_tensor(pose.rotations) / scale[:, None]
    return seen, torch.cat([rotations, (centres / scale + _origin(view))[..., None]], dim=2)
