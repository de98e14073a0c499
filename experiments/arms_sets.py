"""The sets of experiments.arms: contents that all arms share, and what each makes of them.

A set's number decides its content; samples of the same number have the same particles at the same
places in every arm. What an arm knows of the hidden microscope is in wide, unlabelled series.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from experiments.picker_scores import Truth
from experiments.style import measured
from tem_taichi.device import as_tensor, init
from tem_taichi.export.reconstruction import back_project
from tem_taichi.export.volumes import reference, scatterer_labels, solid
from tem_taichi.files.mrc import read_image_stack, write_mrc
from tem_taichi.scene.dataset import Dataset, load_dataset, scene_of
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.particle import ParticleSettings
from tem_taichi.scene.placing import PlacingSettings
from tem_taichi.scene.settings import Scene
from tem_taichi.scene.show import to_yaml
from tem_taichi.scene.style import StyleSettings
from tem_taichi.series.build import build_specimen
from tem_taichi.series.placement import particle_table
from tem_taichi.series.simulate import simulate
from tem_taichi.series.styles import styles_of
from tem_taichi.streams import Key

HERE = Path(__file__).parent
DEPTH = 96
"""Voxels of tomograms along the beam."""
WIDE = 192
"""Pixels a side of the unlabelled series."""
WIDE_FROM = 900
"""Number of the first of them."""
Stack = NDArray[np.float32]


@cache
def hidden() -> Dataset:
    """The hidden microscope."""
    return load_dataset(HERE / "arms_hidden.yaml")


@cache
def contents() -> Dataset:
    """What is in the tomograms, as the settings that tables state show it."""
    return load_dataset(HERE / "arms_content.yaml")


@dataclass(frozen=True)
class Content:
    """Particles of a sample."""

    number: int
    truth: Truth
    particles: dict[str, ParticleSettings]
    """Where they are."""

    @property
    def plain(self) -> Scene:
        """Seen by the settings that tables state."""
        return self.seen(scene_of(contents(), self.number))

    def seen(self, scene: Scene) -> Scene:
        """A scene that shows it, with the gold that the scene has about it."""
        gold = {name: one for name, one in scene.specimen.particles.items()
                if one.made_from == "fiducial"}
        return replace(scene, specimen=replace(scene.specimen, particles=self.particles | gold))


def content(number: int) -> Content:
    """That of a number: random places and turns, and the truth of them."""
    scene = scene_of(contents(), number)
    init(scene.compute.arch, scene.compute.dtype)
    specimen = build_specimen(scene)
    names = [kind.name for kind in specimen.kinds]
    table = particle_table(names, specimen.poses)
    listed = {}
    for name, particle in scene.specimen.particles.items():
        rows = table[table["kind"] == name]
        listed[name] = replace(particle, placing=PlacingSettings(
            placement="listed", positions=tuple(map(tuple, rows[["x", "y", "z"]].to_numpy())),
            orientations=tuple(map(tuple, rows[["rot", "tilt", "psi"]].to_numpy()))))
    shape = (DEPTH, *scene.shape)
    instances = solid(scatterer_labels(specimen, shape, scene.pixel_size), scene.pixel_size)
    places = table[["z", "y", "x"]].to_numpy() / scene.pixel_size + np.array(shape) // 2
    sizes = [reference(kind, specimen.ice, scene.pixel_size).mask.sum() for kind in specimen.kinds]
    truth = Truth(places, np.array([names.index(kind) + 1 for kind in table["kind"]], np.int64),
                  instances.astype(np.int32),
                  np.array([0.0, *np.cbrt(3 * np.array(sizes) / (4 * np.pi))]))
    return Content(number, truth, listed)


def recorded(scene: Scene) -> tuple[Stack, Stack, pd.DataFrame]:
    """Images with and without noise, and their tilts as they are."""
    series = simulate(scene)
    return series.images.numpy(), series.noise_free.numpy(), series.tilts


def tomogram(images: Stack, tilts: pd.DataFrame, pixel_size: float = 10.0) -> Stack:
    """By weighted back-projection at the true alignment, (z, y, x)."""
    return back_project(torch.from_numpy(images), tilts, pixel_size, DEPTH).cpu().numpy()


def wide_series(folder: Path, number: int) -> float:
    """Simulate an unlabelled series of the hidden microscope with a table of what is stated.

    Args:
        folder: where stack, angles and stated.csv go.
        number: from 0.

    Returns:
        CPU seconds.
    """
    scene = scene_of(hidden(), WIDE_FROM + number)
    drawn = scene_of(contents(), WIDE_FROM + number).specimen.particles
    area = (WIDE / scene.shape[0])**2
    particles = {name: replace(one, placing=replace(one.placing, count=round(area * (
        drawn.get(name, one).placing.count)))) for name, one in scene.specimen.particles.items()}
    scene = replace(scene, shape=(WIDE, WIDE), output=str(folder), name="tilt_series", formats=(),
                    overwrite=True, specimen=replace(scene.specimen, particles=particles))
    file = folder.with_suffix(".yaml")
    file.write_text(to_yaml(scene), "utf-8")
    cpu = measured(["tem_taichi.simulate", str(file)])["cpu_s"]
    stated(pd.read_csv(folder / "tilt_series_tilts.csv")).to_csv(folder / "stated.csv", index=False)
    return cpu


def stated(tilts: pd.DataFrame) -> pd.DataFrame:
    """What a table of a series states of its images: nothing of the lens and dose as they were."""
    like = load_scene(HERE / "arms_scene.yaml")
    order = tilts["acquisition_index"].to_numpy()
    return pd.DataFrame({"tilt_angle": tilts["tilt_angle"], "acquisition_index": order,
                         "prior_dose": like.dose * order, "dose": like.dose, "axis_angle": 0.0,
                         "target_defocus": like.optics.defocus})


def calibrated(folder: Path) -> tuple[Scene, float]:
    """The twin of an unlabelled series, and CPU seconds.

    It is fitted to the middle half of the columns, where particles are at all tilts: beyond their
    field there are none here, as there would be in a real series.

    Args:
        folder: of the series; the twin is in its `twin`.
    """
    images, pixel_size = read_image_stack(folder / "tilt_series.mrc")
    side = images.shape[2] // 4
    write_mrc(folder / "middle.mrc", images[:, :, side:-side], pixel_size)
    spent = measured(["tem_taichi.fit", "recipe=twin", f"input={folder}/middle.mrc",
                      f"angles={folder}/stated.csv", "voltage=200", "tile=32",
                      f"output={folder}/twin", "overwrite=true"])["cpu_s"]
    return load_scene(folder / "twin" / "twin.yaml"), spent


def twin_of(one: Content, scene: Scene, gold: bool = True) -> Scene:
    """A content as a twin shows it, in place of the crowd that stands for such.

    Gold that the twin has in its field is spread at random, as densely as there; the ice holds the
    content.

    Args:
        one: the content.
        scene: the twin.
        gold: whether to take it.
    """
    plain, ice = one.plain, scene.specimen.ice
    area = np.prod(plain.shape) / np.prod(scene.shape)
    beads = {name: replace(bead, placing=PlacingSettings(count=round(area * _within(bead, scene))))
             for name, bead in scene.specimen.particles.items()
             if gold and bead.made_from == "fiducial"}
    specimen = replace(scene.specimen, size=None, particles=beads, ice=replace(
        ice, thickness=max(ice.thickness, plain.specimen.ice.thickness)))
    return one.seen(replace(scene, shape=plain.shape, seed=plain.seed, specimen=specimen))


def _within(particle: ParticleSettings, scene: Scene) -> int:
    """Listed copies whose middles are in a scene's untilted field."""
    half = np.array(scene.shape[::-1]) * scene.pixel_size / 2
    places = np.reshape(particle.placing.positions or (), (-1, 3))
    return int((np.abs(places[:, :2]) <= half).all(axis=1).sum())


def in_style(clean: Stack, tilts: pd.DataFrame, folder: Path, number: int, steps: int) -> Stack:
    """Clean images in the style of an unlabelled series; of no steps its white noise alone."""
    styles = styles_of(StyleSettings(style=f"{folder}/tilt_series.mrc",
                                     style_angles=f"{folder}/stated.csv", steps=steps), 10.0)
    return np.stack([styles.law(angle).sample(
        as_tensor(image), 1.0, Key(number, "noise", n)).cpu().numpy()
        for n, (image, angle) in enumerate(zip(clean, tilts["tilt_angle"], strict=True))])


def radial(image: NDArray, bins: int = 48) -> tuple[NDArray, NDArray]:
    """Frequencies [cycles/pixel] and power per pixel of an image relative to its mean.

    Images are not periodic: a window of Hann's keeps their edges out of the spectrum.
    """
    ny, nx = image.shape
    window = np.hanning(ny + 2)[1:-1, None] * np.hanning(nx + 2)[1:-1]
    part = image / image.mean(dtype=np.float64) - 1
    part = part - (part * window).sum() / window.sum()
    power = np.abs(np.fft.rfft2(part * window))**2 / (window**2).sum()
    k = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx))
    ring = np.rint(2 * bins * k).astype(int)
    used = (ring > 0) & (ring <= bins)
    count = np.bincount(ring[used], minlength=bins + 1)[1:]
    mean = np.bincount(ring[used], power[used], bins + 1)[1:] / np.maximum(count, 1)
    middles = np.arange(1, bins + 1) / (2 * bins)
    return middles[count > 0], mean[count > 0]


def matched(clean: Stack, tilts: pd.DataFrame, real: Stack, angles: NDArray,
            rng: np.random.Generator) -> Stack:
    """Clean images with Gaussian noise that makes their spectra those of real ones.

    Args:
        clean: (n, ny, nx).
        tilts: of them.
        real: (m, ...), of any size.
        angles: of these [deg].
        rng: of the noise.

    Returns:
        (n, ny, nx), as bright as the real ones; where clean images have more power than real
        ones nothing is added.
    """
    made = np.empty(clean.shape, np.float32)
    for n, (image, angle) in enumerate(zip(clean, tilts["tilt_angle"], strict=True)):
        like = real[int(np.abs(angles - angle).argmin())]
        contrast = image / image.mean(dtype=np.float64)
        k = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1]))
        left = [np.interp(k, *radial(one)) for one in (like, image)]
        power = np.maximum(left[0] - left[1], 0.0)
        white = np.fft.rfft2(rng.standard_normal(image.shape))
        noise = np.fft.irfft2(white * np.sqrt(power), s=image.shape)
        made[n] = like.mean(dtype=np.float64) * (contrast + noise - noise.mean())
    return made
