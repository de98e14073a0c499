"""Outputs in the formats of other programs, each in a folder of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tem_taichi.export.aretomo import write_aretomo
from tem_taichi.export.coordinates import write_coordinates
from tem_taichi.export.copick import write_copick
from tem_taichi.export.imod import write_imod
from tem_taichi.export.relion5 import write_relion
from tem_taichi.export.shrec import write_shrec
from tem_taichi.export.tables import write_series_mdoc
from tem_taichi.export.volumes import Volumes
from tem_taichi.export.warp import write_warp
from tem_taichi.files.tiff import write_tiff
from tem_taichi.files.tilts import image_names
from tem_taichi.series.record import TiltSeries


def write_formats(folder: Path, series: TiltSeries, formats: Sequence[str],
                  final: Path | None = None) -> None:
    """Write a series for other programs, for each into a subfolder of its name.

    Args:
        folder: an existing folder.
        series: simulated or real; shrec, copick and coordinates need a specimen.
        formats: some of relion5, warp, aretomo, imod, shrec, copick, coordinates and tiff.
        final: where the folder will be, if it is not to stay where it is.

    Raises:
        ValueError: for another format; as the writers; for what can't be written in a format, or
            what it needs and is not known of the series.
    """
    volumes = Volumes(series)
    writers: dict[str, Callable[[Path], None]] = {
        "relion5": lambda place: write_relion(place, series),
        "warp": lambda place: write_warp(place, series),
        "aretomo": lambda place: write_aretomo(place, series),
        "imod": lambda place: write_imod(place, series),
        "shrec": lambda place: write_shrec(place, series, volumes),
        "copick": lambda place: write_copick(place, series, volumes, (final or folder) / "copick"),
        "coordinates": lambda place: write_coordinates(place, series),
        "tiff": lambda place: write_tiff_stacks(place, series)}
    for name in formats:
        if name not in writers:
            raise ValueError(f"formats: {name!r} must be one of {', '.join(writers)}")
        (folder / name).mkdir()
        writers[name](folder / name)


def write_tiff_stacks(folder: Path, series: TiltSeries) -> None:
    """Stack, halves and movies as TIFF; an mdoc names the movies where there are any.

    Args:
        folder: an existing, empty folder.
        series: simulated or real.

    Raises:
        ValueError: as `write_tiff`.
    """
    name = series.name
    for end, stack in series.stacks.items():
        write_tiff(folder / f"{name}{end}.tif", stack.numpy(), series.pixel_size,
                   series.stored_type(stack))
    if series.frames is None:
        return
    (folder / "frames").mkdir()
    files = [f"frames/{file.removesuffix('.mrc')}.tif"
             for file in image_names(name, series.nominal)]
    for file, movie in zip(files, series.frames, strict=True):
        write_tiff(folder / file, movie.numpy(), series.pixel_size, series.stored_type(movie))
    write_series_mdoc(folder / f"{name}.tif.mdoc", series, f"{name}.tif",
                      (files, series.frames.shape[1]))
