"""The files of a simulated tilt series."""

from pathlib import Path

import numpy as np

from tem_taichi.device import current
from tem_taichi.export.finished import digests
from tem_taichi.export.formats import write_formats
from tem_taichi.export.preview import write_preview
from tem_taichi.export.stack import write_stack
from tem_taichi.export.visibility import flagged, in_field
from tem_taichi.files import io
from tem_taichi.files.manifest import METADATA, PROGRAM
from tem_taichi.files.mrc import smallest_type
from tem_taichi.files.particles import write_particles
from tem_taichi.files.tilts import image_names
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.scene.show import to_yaml
from tem_taichi.series.record import TiltSeries
from tem_taichi.specimen.particles import ParticlesInIce
from tem_taichi.versions import versions
from tem_taichi.waiting import waiting


def write_output(folder: Path, scene: Scene, series: TiltSeries,
                 specimen: ParticlesInIce | None = None, final: Path | None = None) -> list[str]:
    """Write everything a simulation gives into an empty folder.

    Args:
        folder: of `folder.new_folder`.
        scene: what was simulated.
        series: its result.
        specimen: what `build_specimen(scene)` gave, if it is at hand; formats of volumes need it.
        final: where the folder will be, if it is not to stay where it is.

    Returns:
        Names of the files, and of the folders of `scene.formats`.
    """
    name, pixel_size = scene.name, series.pixel_size
    images = smallest_type(series.images.numpy(), scene.detector.integer)
    clean = series.noise_free.numpy().astype(np.float32)
    io.write_mrc(folder / f"{name}.mrc", images, pixel_size)
    io.write_mrc(folder / f"{name}_noise_free.mrc", clean, pixel_size)
    if series.halves is not None:
        for half, images_of_half in zip(("EVN", "ODD"), series.halves.numpy(), strict=True):
            io.write_mrc(folder / f"{name}_{half}.mrc",
                         smallest_type(images_of_half, scene.detector.integer), pixel_size)
    io.write_rawtlt(folder / f"{name}.rawtlt", series.tilt_angles)
    nominal = series.tilts.assign(tilt_angle=series.tilt_angles,
                                  axis_angle=scene.tilts.axis_angle)
    single = "relion5" in scene.formats  # which writes every image into a file of its own
    io.write_mdoc(folder / f"{name}.mrc.mdoc", nominal, image_file=f"{name}.mrc",
                  pixel_size=pixel_size, voltage=scene.microscope.voltage,
                  shape=(scene.shape[0], scene.shape[1]), mode=io.mrc_mode(images.dtype),
                  frames=([f"relion5/tilts/{file}" for file in image_names(name, nominal)], 1)
                  if single else None)
    io.write_tilt_table(folder / f"{name}_tilts.csv", series.tilts)
    write_particles(folder / f"{name}_particles.star", flagged(scene, series), tomogram=name,
                    pixel_size=pixel_size, voltage=scene.microscope.voltage,
                    spherical_aberration=scene.microscope.spherical_aberration,
                    amplitude_contrast=series.amplitude_contrast)
    write_formats(folder, scene, series, specimen, final)
    write_stack(folder, scene, series)
    (folder / "scene.yaml").write_text(to_yaml(scene), encoding="utf-8")
    write_preview(folder / "preview.png", images, clean, series.tilt_angles, pixel_size)
    io.write_json(folder / METADATA, {
        "program": PROGRAM,
        "versions": versions(),
        "inputs": digests(scene),
        "seed": scene.seed,
        "warnings": doubts(scene),
        "device": current().arch,
        "dtype": scene.compute.dtype,
        "threads": {"torch": list(series.threads), **waiting()},
        "seconds": {stage: round(s, 3) for stage, s in series.seconds.items()},
        "particles": len(series.particles),
        "particles_in_field": int(in_field(scene, series).sum()),
        "pixel_size_A": pixel_size,
        "mean_counts": float(clean.mean()),
    })
    return sorted(file.name for file in folder.iterdir())
