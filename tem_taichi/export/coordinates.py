"""Where every particle is in every image: labels for pickers that work on tilts."""

from pathlib import Path

from tem_taichi.export.stack import particle_views
from tem_taichi.series.record import TiltSeries


def write_coordinates(folder: Path, series: TiltSeries) -> None:
    """Write `<name>_coordinates.csv`, a row a particle and image in which its centre lies.

    Columns: image and particle, rows of the stack and of the list of particles, from 1; kind; x, y,
    pixels from the middle of the first one; z, the height along the beam from the specimen's
    centre [A]; rot, tilt, psi [deg], from the particle to the image; defocus_u, defocus_v [A], at
    its height.

    Args:
        folder: an existing folder.
        series: of which particles, alignment and defoci are known.
    """
    views = particle_views(series).rename(columns={"column": "x", "row": "y", "height": "z",
                                                   "copy": "particle"})
    ny, nx = series.shape
    inside = ((views["x"] >= -0.5) & (views["x"] < nx - 0.5)
              & (views["y"] >= -0.5) & (views["y"] < ny - 0.5))
    table = views[inside].assign(image=views["image"] + 1, particle=views["particle"] + 1)
    table = table[["image", "particle", "kind", "x", "y", "z", "rot", "tilt", "psi",
                   "defocus_u", "defocus_v"]]
    table.to_csv(folder / f"{series.name}_coordinates.csv", index=False, float_format="%.3f")
