"""The files of a simulated tilt series."""

from pathlib import Path

import numpy as np

from tem_taichi import io
from tem_taichi.config import Scene
from tem_taichi.device import current
from tem_taichi.folder import METADATA, PROGRAM
from tem_taichi.particle_files import write_particles
from tem_taichi.pipeline import TiltSeries
from tem_taichi.preview import write_preview
from tem_taichi.scene_yaml import to_yaml
from tem_taichi.versions import versions


def write_output(folder: Path, scene: Scene, series: TiltSeries) -> list[str]:
    """Write everything a simulation gives into an empty folder.

    Args:
        folder: of `folder.new_folder`.
        scene: what was simulated.
        series: its result.

    Returns:
        Names of the files.
    """
    name, pixel_size = scene.name, series.pixel_size
    images = _stored(series.images.numpy(), scene.detector.integer)
    clean = series.noise_free.numpy().astype(np.float32)
    io.write_mrc(folder / f"{name}.mrc", images, pixel_size)
    io.write_mrc(folder / f"{name}_noise_free.mrc", clean, pixel_size)
    io.write_rawtlt(folder / f"{name}.rawtlt", series.tilt_angles)
    io.write_mdoc(folder / f"{name}.mrc.mdoc", series.tilts.assign(
        tilt_angle=series.tilt_angles, axis_angle=scene.tilts.axis_angle),
        image_file=f"{name}.mrc", pixel_size=pixel_size, voltage=scene.microscope.voltage,
        shape=(scene.shape[0], scene.shape[1]), mode=io.mrc_mode(images.dtype))
    io.write_tilt_table(folder / f"{name}_tilts.csv", series.tilts)
    write_particles(folder / f"{name}_particles.star", series.particles, tomogram=name,
                    pixel_size=pixel_size, voltage=scene.microscope.voltage,
                    spherical_aberration=scene.microscope.spherical_aberration,
                    amplitude_contrast=scene.optics.amplitude_contrast)
    (folder / "scene.yaml").write_text(to_yaml(scene), encoding="utf-8")
    write_preview(folder / "preview.png", images, clean, series.tilt_angles, pixel_size)
    io.write_json(folder / METADATA, {
        "program": PROGRAM,
        "versions": versions(),
        "seed": scene.seed,
        "device": current().arch,
        "dtype": scene.compute.dtype,
        "seconds": {stage: round(s, 3) for stage, s in series.seconds.items()},
        "particles": len(series.particles),
        "pixel_size_A": pixel_size,
        "mean_counts": float(clean.mean()),
    })
    return sorted(file.name for file in folder.iterdir())


def _stored(counts: np.ndarray, integer: bool) -> np.ndarray:
    """Counts in the smallest type that holds them exactly enough: 16 bits for whole numbers."""
    if integer and counts.min() >= -32768 and counts.max() <= 32767:
        return np.rint(counts).astype(np.int16)
    if integer and counts.min() >= 0 and counts.max() <= 65535:
        return np.rint(counts).astype(np.uint16)
    return counts.astype(np.float32)
