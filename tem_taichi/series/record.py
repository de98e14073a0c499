"""A tilt series: its images, what other programs need to know, and the truth behind them."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from tem_taichi.files.mrc import smallest_type
from tem_taichi.files.particles import POSITION
from tem_taichi.instrument.distortion import anisotropic
from tem_taichi.scene.settings import Scene
from tem_taichi.series.placement import particle_table
from tem_taichi.specimen.absorption import amplitude_contrast_of_protein
from tem_taichi.specimen.particles import ParticlesInIce


@dataclass(frozen=True, kw_only=True)
class TiltSeries:
    """Images of a specimen at several tilts, in the order of ascending nominal angle.

    Of a simulated series everything is known. Of a real one (`series.read.read_series`) what
    nobody has measured is None, or a column that `tilts` lacks.
    """

    name: str
    """In names of files and in tables."""
    images: torch.Tensor
    """Counts with noise, (n, ny, nx)."""
    tilts: pd.DataFrame
    """nominal_angle [deg] and those of `files.tilts.TILT_COLUMNS` that are known, a row an image.
    Of a simulated series they are the truth, see `tilts.tilt_table`. Without shift_x the alignment
    is not known, without defocus_u the CTF."""
    pixel_size: float
    """[A]"""
    voltage: float | None = None
    """[kV]"""
    spherical_aberration: float | None = None
    """[mm]"""
    chromatic_aberration: float | None = None
    """[mm]"""
    amplitude_contrast: float | None = None
    """Fraction: that of the scene, or of protein in ice where the scene leaves it to the atoms."""
    axis_angle: float | None = None
    """Nominal, of the tilt axis from +y, counter-clockwise [deg]."""
    height: int | None = None
    """Voxels along z of a tomogram that holds the ice, even."""
    integer: bool = False
    """Whether images are whole numbers, which take 16 bits in files."""
    hand: int = 1
    """1 = z of the right-handed tomogram runs along the beam, and defocus grows with it, as here;
    -1 = against it, which RELION, IMOD and Warp take for granted."""
    projector: NDArray[np.float64] = field(default_factory=lambda: np.eye(2))
    """Matrix (2, 2) from undistorted to distorted x, y about the image's centre."""
    one_defocus: bool = False
    """Whether all heights were imaged at the defocus of the specimen's centre."""
    noise_free: torch.Tensor | None = None
    """Expected counts, (n, ny, nx)."""
    halves: torch.Tensor | None = None
    """Two images of half the electrons each, whose sum `images` are, (2, n, ny, nx)."""
    frames: torch.Tensor | None = None
    """Frames of each image's movie, (n, frames, ny, nx)."""
    particles: pd.DataFrame | None = None
    """kind, x, y, z [A from the specimen's centre], rot, tilt, psi [deg]."""
    kinds: dict[str, str] = field(default_factory=dict)
    """What each kind of particle is made from, by its name: one of `scene.particle.SOURCES`."""
    specimen: ParticlesInIce | None = None
    """What was imaged."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent in each stage."""
    threads: tuple[int, ...] = ()
    """Numbers of torch's threads that were used, see `sharing`."""

    @property
    def tilt_angles(self) -> NDArray[np.float64]:
        """Nominal angles [deg], (n,); `tilts` has the true ones."""
        return self.tilts["nominal_angle"].to_numpy()

    @property
    def nominal(self) -> pd.DataFrame:
        """`tilts` with the nominal angles of tilt and axis, as the microscope reports them."""
        return self.tilts.assign(tilt_angle=self.tilt_angles, axis_angle=self.axis_angle)

    @property
    def aligned(self) -> bool:
        """Whether it is known how the images lie to each other."""
        return "shift_x" in self.tilts

    @property
    def shape(self) -> tuple[int, int]:
        """Of an image (ny, nx)."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def stacks(self) -> dict[str, torch.Tensor]:
        """The images and their halves, where there are any, by the ends of their files' names."""
        halves = () if self.halves is None else self.halves
        return {"": self.images, **dict(zip(("_EVN", "_ODD"), halves, strict=False))}

    def stored_type(self, stack: torch.Tensor) -> np.dtype:
        """The smallest type that holds counts of this series, (n, ny, nx)."""
        return smallest_type((image.numpy() for image in stack), self.integer)

    def known(self, program: str, *names: str) -> list[Any]:
        """What a program's files can't do without.

        Args:
            program: that needs it.
            names: fields, or columns of `tilts`.

        Returns:
            Their values.

        Raises:
            ValueError: with one line that names the first that is not known.
        """
        values = [getattr(self, name, self.tilts.get(name)) for name in names]
        for name, value in zip(names, values, strict=True):
            if value is None:
                raise ValueError(f"{program} needs {name}, which is not known of the series "
                                 f"{self.name}")
        return values


def recorded(scene: Scene, specimen: ParticlesInIce, tilts: pd.DataFrame,
             **rest: Any) -> TiltSeries:
    """A series as it is recorded of a scene.

    Args:
        scene: that decides the microscope and the names.
        specimen: what was imaged.
        tilts: as of `tilts.tilt_table`.
        rest: other fields of `TiltSeries`, images among them.
    """
    return TiltSeries(**{
        "name": scene.name, "tilts": tilts, "pixel_size": scene.pixel_size,
        "voltage": scene.microscope.voltage,
        "spherical_aberration": scene.microscope.spherical_aberration,
        "chromatic_aberration": scene.microscope.chromatic_aberration,
        "amplitude_contrast": amplitude_contrast(scene, specimen),
        "axis_angle": float(scene.tilts.axis_angle), "height": tomogram_height(scene),
        "integer": scene.detector.integer,
        "projector": anisotropic(
            scene.optics.magnification_anisotropy, scene.optics.magnification_angle
        ).cpu().numpy().astype(np.float64),
        "one_defocus": scene.interaction.mode != "multislice",
        "particles": particle_table([kind.name for kind in specimen.kinds], specimen.poses),
        "kinds": {name: particle.made_from for name, particle in scene.specimen.particles.items()},
        "specimen": specimen, **rest})


def amplitude_contrast(scene: Scene, specimen: ParticlesInIce) -> float:
    """Q that other programs need as a number: the scene's, or else that of protein in its ice."""
    given, ice = scene.optics.amplitude_contrast, specimen.ice
    if given is not None:
        return given
    if ice.mean_free_path is None:
        return 0.0
    return float(amplitude_contrast_of_protein(
        float(ice.mean_free_path), scene.microscope.voltage, float(ice.potential),
        float(ice.particle_absorption), ice.ratios))


def tomogram_height(scene: Scene) -> int:
    """Voxels along z of a tomogram that holds the ice wherever it is in the field, even."""
    ice, (ny, nx) = scene.specimen.ice, scene.shape
    thickness = max(ice.thickness, ice.edge_thickness or 0.0)
    rise = (abs(ice.slope[0]) * nx + abs(ice.slope[1]) * ny) * scene.pixel_size
    height = math.ceil((thickness + rise) / scene.pixel_size)
    return height + height % 2


def in_box(points: NDArray[np.float64], shape: tuple[int, int, int],
           voxel: float) -> NDArray[np.bool_]:
    """Whether points lie in a voxel of a volume whose centre is voxel n // 2.

    Args:
        points: x, y, z from the centre [A], shape (m, 3).
        shape: (nz, ny, nx).
        voxel: edge [A].
    """
    size = np.array(shape[::-1])
    voxels = np.floor(points / voxel + 0.5) + size // 2
    return np.all((voxels >= 0) & (voxels < size), axis=1)


def in_field(series: TiltSeries) -> NDArray[np.bool_]:
    """Whether each particle's centre lies in the field of the untilted image and the ice, (m,).

    Raises:
        ValueError: if the particles or the tomogram's height are not known.
    """
    particles, height = series.known("the field", "particles", "height")
    return in_box(particles[list(POSITION)].to_numpy(np.float64), (height, *series.shape),
                  series.pixel_size)
