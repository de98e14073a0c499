"""A chiral particle comes back, not its mirror image, when files are read as RELION reads them.

Images are noise-free; they are reconstructed by `reference.reconstruction`, which knows nothing
of the package but the files. What keeps the FSC below 1 is known and small: trilinear
interpolation in Fourier space, neighbours that overlap in tilted boxes, fringes cut off by the
box, and the quadratic term of the images: 0.87 and more is left up to 0.8 of the Nyquist
frequency. The limit is 0.8, above what is left where only some of the images are right.
"""

from dataclasses import dataclass, replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import reconstruction as reference
import starfile
import torch
from scipy.optimize import minimize_scalar
from scipy.spatial.transform import Rotation

from tem_taichi.cli.output import write_result
from tem_taichi.device import as_tensor
from tem_taichi.rotations import random_rotations
from tem_taichi.scene.settings import (
    ComputeSettings,
    IceSettings,
    InteractionSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    StackSettings,
    TiltErrorSettings,
    TiltSettings,
)
from tem_taichi.series.simulate import simulate
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.particles import Ice, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses

BOX, PIXEL, SULFUR, B_FACTOR = 48, 2.0, 16, 60.0
GOOD = slice(1, round(0.8 * BOX / 2) + 1)
"""Shells up to 0.8 of the Nyquist frequency."""
FINE = slice(10, round(0.8 * BOX / 2) + 1)
"""Shells of details smaller than the particle's outline, which has no hand."""

UNLIKE = 0.25
"""Mean |FSC| of volumes with nothing in common: the particle and itself turned at random have 0.01
to 0.09, and wrong reconstructions, which are blurred, up to 0.16."""


def chiral_atoms():
    """16 atoms within 20 A of the origin, at least 7 A apart: chance leaves them no symmetry."""
    rng = np.random.default_rng(1)
    found = np.empty((0, 3))
    while len(found) < 16:
        point = rng.uniform(-20, 20, 3)
        if np.linalg.norm(point) < 20 and (np.linalg.norm(found - point, axis=1) > 7).all():
            found = np.vstack([found, point])
    return found - found.mean(0)


def kind(positions):
    n = len(positions)
    return kind_of(Atoms(torch.full((n,), SULFUR), as_tensor(positions),
                         as_tensor(np.full(n, B_FACTOR)), as_tensor(np.ones(n)),
                         torch.zeros(n, dtype=torch.bool)), "chiral")


def scene_of(**changes):
    settings = dict(
        name="chiral", pixel_size=PIXEL, seed=4,
        dose=0.01,  # so little that the beam damages nothing
        specimen=SpecimenSettings(ice=IceSettings(thickness=1000.0, potential=0.0,
                                                  mean_free_path=None)),
        # Astigmatism fills the zeros of the CTF, and tells the direction of its angle.
        optics=OpticsSettings(defocus=4000.0, astigmatism=1500.0, astigmatism_angle=25.0,
                              amplitude_contrast=0.1),
        interaction=InteractionSettings(slice_thickness=50.0), compute=ComputeSettings(arch="cpu"))
    return Scene(**{**settings, **changes})


def written(folder, scene, kind, positions, rotations):
    """Simulate without noise and write all files."""
    specimen = ParticlesInIce((kind,), (Poses(positions, rotations),), Ice(1000.0))
    series = simulate(scene, specimen=specimen)
    write_result(folder, scene, replace(series, images=series.noise_free))
    return folder


def scattered(columns, rows, spacing, depth, rng):
    """Places about the points of a lattice, with heights up to +-depth [A]."""
    x, y = ((np.arange(n) - (n - 1) / 2) * step
            for n, step in zip((columns, rows), spacing, strict=True))
    flat = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return np.hstack([flat + rng.uniform(-8, 8, flat.shape),
                      rng.uniform(-depth, depth, (len(flat), 1))])


@dataclass(frozen=True)
class Views:
    """Boxes and what their files say of them."""

    boxes: np.ndarray
    matrices: np.ndarray
    shifts: np.ndarray
    optics: tuple
    defocus: pd.DataFrame
    """u, v, angle, phase and image of each."""

    def reconstructed(self, matrices=None, shifts=None, **defocus):
        lens = {name: np.asarray(values, float)[:, None]
                for name, values in self.defocus.assign(**defocus).items()}
        return reference.reconstruct(
            self.boxes, self.matrices if matrices is None else matrices,
            self.shifts if shifts is None else shifts,
            lambda kx, ky: reference.ctf(kx, ky, self.optics, lens["u"], lens["v"], lens["angle"],
                                         lens["phase"]), PIXEL)


def fsc(volume, truth):
    mask = reference.sphere(BOX, 16)  # 32 A: the atoms' centres lie within 20 A, and their tails
    return reference.shell_correlation(volume * mask, truth * mask)


def boxes_at(images, number, places):
    """Squares around the pixels nearest to places, white protein, and the shift that is left."""
    nearest = np.rint(places).astype(int)
    first = nearest - BOX // 2
    inside = ((first >= 0) & (first + BOX <= images.shape[:0:-1])).all(axis=1)
    cut = np.stack([images[n, y:y + BOX, x:x + BOX] for n, (x, y) in zip(
        number[inside], first[inside], strict=True)])
    background = np.median(images, axis=(1, 2))[number[inside], None, None]
    return -(cut / background - 1), PIXEL * (nearest - places)[inside], inside


@pytest.fixture(scope="module")
def truth():
    atoms = chiral_atoms()
    return reference.potential(atoms, np.full(len(atoms), SULFUR), B_FACTOR, BOX, PIXEL)


@pytest.fixture(scope="module")
def particle_stack(tmp_path_factory):
    """Three tilted micrographs of 64 copies, as a stack of single particles."""
    rng = np.random.default_rng(2)
    scene = scene_of(
        shape=[440, 440], stack=StackSettings(box=BOX),
        tilts=TiltSettings(scheme="listed", angles=[25.0, -35.0, 40.0], axis_angle=35.0,
                           shifts=[[3.3, -5.1], [-7.7, 2.4], [0.6, 0.9]],
                           defocus_offsets=[0.0, 500.0, -700.0]))
    folder = written(tmp_path_factory.mktemp("stack"), scene, kind(chiral_atoms()),
                     scattered(8, 8, (100, 100), 300, rng), random_rotations(64, rng))
    star = starfile.read(folder / "chiral_stack.star")
    rows, optics = star["particles"], star["optics"].iloc[0]
    with mrcfile.open(folder / "chiral_stack.mrcs") as mrc:
        boxes = mrc.data.astype(float)
    number = rows.rlnImageName.str.split("@").str[0].astype(int).to_numpy() - 1
    return Views(boxes[number],
                 reference.euler_matrix(rows.rlnAngleRot, rows.rlnAngleTilt, rows.rlnAnglePsi),
                 rows[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy(),
                 (optics.rlnVoltage, optics.rlnSphericalAberration, optics.rlnAmplitudeContrast),
                 pd.DataFrame({"u": rows.rlnDefocusU, "v": rows.rlnDefocusV,
                               "angle": rows.rlnDefocusAngle, "phase": rows.rlnPhaseShift,
                               "image": rows.rlnMicrographName.str[:6].astype(int)}))


SERIES = dict(shape=[256, 400], formats=["relion5"], tilts=TiltSettings(
    scheme="dose_symmetric", minimum=-60, maximum=60, step=6, axis_angle=15.0,
    # The nominal axis and angles are then not the true ones, and RELION's x tilt not 0.
    errors=TiltErrorSettings(angle=0.3, axis_angle=4.0, shift=6.0)))


@pytest.fixture(scope="module")
def tilt_series(tmp_path_factory):
    """21 tilts of 12 copies."""
    rng = np.random.default_rng(3)
    return written(tmp_path_factory.mktemp("series"), scene_of(**SERIES), kind(chiral_atoms()),
                   scattered(4, 3, (165, 130), 100, rng), random_rotations(12, rng))


def from_tables(folder):
    """Boxes at the places that <name>_tilts.csv and <name>_particles.star give."""
    tilts = pd.read_csv(folder / "chiral_tilts.csv")
    star = starfile.read(folder / "chiral_particles.star")
    rows, optics = star["particles"], star["optics"].iloc[0]
    points = rows[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy()
    poses = reference.euler_matrix(rows.rlnAngleRot, rows.rlnAngleTilt, rows.rlnAnglePsi)
    axis = np.deg2rad(tilts.axis_angle.to_numpy())
    direction = np.stack([-np.sin(axis), np.cos(axis), 0 * axis], axis=1)
    turns = Rotation.from_rotvec(
        direction * np.deg2rad(tilts.tilt_angle.to_numpy())[:, None]).as_matrix()
    with mrcfile.open(folder / "chiral_noise_free.mrc") as mrc:
        images = mrc.data.astype(float)
    ny, nx = images.shape[1:]
    turned = np.einsum("nij,mj->nmi", turns, points)
    number = np.repeat(np.arange(len(tilts)), len(rows))
    places = ((turned[..., :2] + tilts[["shift_x", "shift_y"]].to_numpy()[:, None]) / PIXEL
              + [nx // 2, ny // 2]).reshape(-1, 2)
    boxes, shifts, inside = boxes_at(images, number, places)
    height = turned[..., 2].ravel()
    lens = pd.DataFrame({"u": tilts.defocus_u.to_numpy()[number] + height,
                         "v": tilts.defocus_v.to_numpy()[number] + height,
                         "angle": tilts.astigmatism_angle.to_numpy()[number],
                         "phase": tilts.phase_shift.to_numpy()[number]})
    return Views(boxes, (turns[:, None] @ poses).reshape(-1, 3, 3)[inside], shifts,
                 (optics.rlnVoltage, optics.rlnSphericalAberration, optics.rlnAmplitudeContrast),
                 lens[inside])


def from_relion(folder, hand=None):
    """Boxes at the places that the files in relion5/ give, as relion_tomo_subtomo cuts them."""
    folder = folder / "relion5"
    tomogram = starfile.read(folder / "tomograms.star", always_dict=True)["global"].iloc[0]
    tilts = starfile.read(folder / tomogram.rlnTomoTiltSeriesStarFile)
    rows = starfile.read(folder / "particles.star")["particles"]
    pixel = tomogram.rlnTomoTiltSeriesPixelSize
    hand = tomogram.rlnTomoHand if hand is None else hand
    centre = np.array([tomogram[f"rlnTomoSize{axis}"] for axis in "XYZ"]) / 2
    points = rows[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy() / pixel
    poses = reference.euler_matrix(rows.rlnAngleRot, rows.rlnAngleTilt, rows.rlnAnglePsi)
    images = []
    for name in tilts.rlnMicrographName:
        with mrcfile.open(folder / name) as mrc:
            images.append(mrc.data.squeeze().astype(float))
    images = np.stack(images)
    projections = np.stack([
        reference.relion5_projection(tilt, tomogram, images.shape[1:], pixel)
        for tilt in tilts.itertuples()])
    turns = projections[:, :3, :3]
    places = (np.einsum("nij,mj->nmi", turns, points + centre)
              + projections[:, None, :3, 3]).reshape(-1, 3)
    middle = (turns @ centre + projections[:, :3, 3])[:, 2]
    number = np.repeat(np.arange(len(tilts)), len(rows))
    boxes, shifts, inside = boxes_at(images, number, places[:, :2])
    deeper = hand * pixel * (places[:, 2] - middle[number])
    lens = pd.DataFrame({"u": tilts.rlnDefocusU.to_numpy()[number] + deeper,
                         "v": tilts.rlnDefocusV.to_numpy()[number] + deeper,
                         "angle": tilts.rlnDefocusAngle.to_numpy()[number],
                         "phase": tilts.rlnPhaseShift.to_numpy()[number]})
    return Views(boxes, (turns[:, None] @ poses).reshape(-1, 3, 3)[inside], shifts,
                 (tomogram.rlnVoltage, tomogram.rlnSphericalAberration,
                  tomogram.rlnAmplitudeContrast), lens[inside])


def check_hand(views, truth):
    """The particle comes back; its mirror image and inverse rotations do not fit."""
    volume = views.reconstructed()
    right = fsc(volume, truth)
    assert right[GOOD].min() > 0.8, right
    assert np.abs(fsc(volume, reference.mirrored(truth))[FINE]).mean() < UNLIKE
    wrong = views.reconstructed(matrices=views.matrices.transpose(0, 2, 1))
    for hand in (truth, reference.mirrored(truth)):
        assert np.abs(fsc(wrong, hand)[FINE]).mean() < UNLIKE
    return right


def test_mirror_image_of_the_particle_is_another_one(truth):
    assert np.abs(fsc(truth, reference.mirrored(truth))[FINE]).mean() < UNLIKE
    assert fsc(truth, truth)[GOOD].min() == pytest.approx(1)


def test_single_particles(particle_stack, truth):
    right = check_hand(particle_stack, truth)
    turned = particle_stack.reconstructed(shifts=-particle_stack.shifts)
    lens = particle_stack.defocus
    angle = particle_stack.reconstructed(angle=-lens["angle"])
    over = particle_stack.reconstructed(u=-lens["u"], v=-lens["v"])
    # Half a pixel of blur (twice the rest, up to 0.5) turns phases by up to pi k / Nyquist.
    assert fsc(turned, truth)[FINE].mean() < right[FINE].mean() - 0.1
    assert fsc(angle, truth)[FINE].mean() < right[FINE].mean() - 0.3
    assert fsc(over, truth)[FINE].mean() < -0.5  # black for white
    mean = lens.groupby("image")[["u", "v"]].transform("mean")
    flat = particle_stack.reconstructed(u=mean["u"], v=mean["v"])
    # Heights of +-300 A turn the phase by up to pi lambda 300 A k^2 = 1.2 rad at Nyquist.
    assert fsc(flat, truth)[20:].mean() < right[20:].mean() - 0.01


def test_tilt_series_from_its_tables(tilt_series, truth):
    check_hand(from_tables(tilt_series), truth)


def test_tilt_series_from_relions_files_alone(tilt_series, truth):
    right = check_hand(from_relion(tilt_series), truth)
    wrong = fsc(from_relion(tilt_series, hand=-1).reconstructed(), truth)
    # Half of the heights of the stack above, and so a weaker effect.
    assert (wrong[20:] < right[20:]).all()


def fitted_defocus(box, shift, optics, near):
    """Defocus [A] whose CTF is most like the transform of one atom's box."""
    kx, ky = reference.frequencies(len(box), PIXEL)
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(box)))
    spectrum *= np.exp(-2j * np.pi * (kx * shift[0] + ky * shift[1]))
    band = (np.hypot(kx, ky) > 0.05) & (np.hypot(kx, ky) < 0.2)
    factor = reference.scattering_factor(SULFUR, B_FACTOR, kx**2 + ky**2)

    def unlike(defocus):
        model = (factor * reference.ctf(kx, ky, optics, defocus, defocus, 0, 0))[band]
        observed = spectrum.real[band]
        return -np.dot(model, observed) / np.sqrt(np.dot(model, model))

    return minimize_scalar(unlike, bounds=(near - 900, near + 900), method="bounded",
                           options={"xatol": 0.1}).x


@pytest.mark.parametrize("axis", [0.0, 50.0])
def test_defocus_gradient(tmp_path, axis):
    """At +45 deg the side of the axis that goes down the beam is further under focus.

    The atoms lie 360 A to the right and to the left of the axis, seen with the axis upwards and
    the beam towards the viewer. A right-handed turn by t about +y takes x to z = -x sin t: at
    +45 deg the right one rises against the beam. Positive is underfocus: the plane in focus is
    upstream, so that a larger z is further from it.
    """
    right = np.array([np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis)), 0])
    scene = scene_of(
        shape=[440, 440], optics=OpticsSettings(defocus=3000.0, amplitude_contrast=0.1),
        tilts=TiltSettings(scheme="listed", angles=[-45.0, 0.0, 45.0], axis_angle=axis),
        interaction=InteractionSettings(slice_thickness=10.0), formats=["relion5"])
    folder = written(tmp_path, scene, kind(np.zeros((1, 3))),
                     np.stack([360 * right, -360 * right]), np.tile(np.eye(3), (2, 1, 1)))
    views = from_relion(folder)
    fits = np.array([fitted_defocus(*view, views.optics, 3000.0)
                     for view in zip(views.boxes, views.shifts, strict=True)]).reshape(3, 2)
    fall = 360 * np.sin(np.deg2rad([-45, 0, 45]))
    order = starfile.read(folder / "relion5" / "tilt_series" / "chiral.star")
    by_angle = np.argsort(order["rlnTomoNominalStageTiltAngle"])
    # An atom acts in the middle of its slice: up to half of 10 A off; as much is left for the box,
    # which cuts fringes off (4 A).
    assert np.allclose(fits[by_angle], 3000 - np.stack([fall, -fall], axis=1), atol=10)
    assert np.allclose(fits.ravel(), views.defocus["u"], atol=10)
    against = from_relion(folder, hand=-1).defocus["u"].to_numpy().reshape(3, 2)
    assert np.abs(against - fits)[by_angle][[0, 2]].min() > 400  # twice 255 A
