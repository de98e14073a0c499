"""Outputs in the formats of other programs, each in a folder of its own."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tem_taichi.export.aretomo import write_aretomo
from tem_taichi.export.copick import write_copick
from tem_taichi.export.imod import write_imod
from tem_taichi.export.relion5 import write_relion
from tem_taichi.export.shrec import write_shrec
from tem_taichi.export.volumes import Volumes
from tem_taichi.export.warp import write_warp
from tem_taichi.files.mrc import mrc_mode, smallest_type
from tem_taichi.files.tiff import write_tiff
from tem_taichi.files.tilts import image_names, write_mdoc
from tem_taichi.scene.settings import Scene
from tem_taichi.series.build import build_specimen
from tem_taichi.series.record import TiltSeries
from tem_taichi.specimen.particles import ParticlesInIce

_SERIES: dict[str, Callable[[Path, Scene, TiltSeries], None]] = {
    "relion5": write_relion, "warp": write_warp, "aretomo": write_aretomo, "imod": write_imod}


def write_formats(folder: Path, scene: Scene, series: TiltSeries,
                  specimen: ParticlesInIce | None = None, final: Path | None = None) -> None:
    """Write the formats that a scene asks for, each into a subfolder of its name.

    Args:
        folder: an existing folder.
        scene: what was simulated, with its `formats`.
        series: its result.
        specimen: what `build_specimen(scene)` gave, if it is at hand.
        final: where the folder will be, if it is not to stay where it is.

    Raises:
        ValueError: as the writers; for what can't be written in a format.
    """
    volumes = None
    for name in scene.formats:
        place = folder / name
        place.mkdir()
        if name in _SERIES:
            _SERIES[name](place, scene, series)
        elif name in ("shrec", "copick"):
            volumes = volumes or Volumes(scene, specimen or build_specimen(scene), series)
            if name == "shrec":
                write_shrec(place, scene, series, volumes)
            else:
                write_copick(place, scene, series, volumes, (final or folder) / name)
        else:
            _write_tiff_stacks(place, scene, series)


def _write_tiff_stacks(folder: Path, scene: Scene, series: TiltSeries) -> None:
    """Stack, halves and movies as TIFF; an mdoc names the movies where there are any."""
    def write(file: str, images: Tensor) -> None:
        write_tiff(folder / file, smallest_type(images.numpy(), scene.detector.integer),
                   scene.pixel_size)

    name = scene.name
    write(f"{name}.tif", series.images)
    if series.halves is not None:
        write(f"{name}_EVN.tif", series.halves[0])
        write(f"{name}_ODD.tif", series.halves[1])
    if series.frames is not None:
        (folder / "frames").mkdir()
        nominal = series.tilts.assign(tilt_angle=series.tilt_angles,
                                      axis_angle=float(scene.tilts.axis_angle))
        files = [f"frames/{file.removesuffix('.mrc')}.tif" for file in image_names(name, nominal)]
        for file, movie in zip(files, series.frames, strict=True):
            write(file, movie)
        mode = mrc_mode(smallest_type(series.images.numpy(), scene.detector.integer).dtype)
        write_mdoc(folder / f"{name}.tif.mdoc", nominal, image_file=f"{name}.tif", mode=mode,
                   pixel_size=scene.pixel_size, voltage=scene.microscope.voltage,
                   shape=(scene.shape[0], scene.shape[1]), frames=(files, series.frames.shape[1]))
