"""Warp's XML of a tilt series: where it lies (TiltSeries.cs) and its true CTF (CTF.cs)."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tem_taichi.export.relion5 import tomogram_size
from tem_taichi.series.record import TiltSeries


def metadata_text(series: TiltSeries, aligned: pd.DataFrame, movies: Sequence[str]) -> str:
    """Text of `warp_tiltseries/<name>.xml`: lengths in A, defocus in um, phase shifts in pi.

    Args:
        series: without defoci there is no CTF.
        aligned: of `true_alignment`, with y_tilt inverted; x_tilt is left out.
        movies: names of the images, as in the tomostar.
    """
    pixel, (ny, nx) = series.pixel_size, series.shape
    # Warp's word for z against the beam: the sign of the change of defocus alone.
    inverted = str(series.hand < 0)
    root = ElementTree.Element("TiltSeries", {
        "AreAnglesInverted": inverted, "PlaneNormal": "0, 0, 0", "LevelAngleX": "0",
        "LevelAngleY": "0", "Bfactor": "0", "Weight": "1", "UnselectFilter": "False",
        "MagnificationCorrection": "1, 0, 0, 1", "UnselectManual": "null",
        "CTFResolutionEstimate": "0",
        "VolumeDimensionsAngstrom": ", ".join(_text(n * pixel) for n in tomogram_size(series)),
        "ImageDimensionsAngstrom": f"{_text(nx * pixel)}, {_text(ny * pixel)}"})
    # Warp turns about n / 2, the axis runs through pixel n // 2.
    shift_x, shift_y = (aligned[f"shift_{axis}"] + (n // 2 - n / 2) * pixel
                        for axis, n in (("x", nx), ("y", ny)))
    for name, values in (
            ("Angles", map(_text, aligned["y_tilt"] + 0.0)),
            ("Dose", map(_text, series.tilts["prior_dose"])), ("UseTilt", ["True"] * len(aligned)),
            ("AxisAngle", map(_text, aligned["z_rotation"])), ("AxisOffsetX", map(_text, shift_x)),
            ("AxisOffsetY", map(_text, shift_y)), ("MoviePath", movies),
            ("FOVFraction", ["1"] * len(aligned))):
        ElementTree.SubElement(root, name).text = "\n".join(values)
    if "defocus_u" in series.tilts:
        _add_ctf(root, series)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_ctf(root: ElementTree.Element, series: TiltSeries) -> None:
    """The parameters of all images, and grids with one node each of those that differ."""
    u, v, angle, phase = (series.tilts[name].to_numpy(np.float64) for name in (
        "defocus_u", "defocus_v", "astigmatism_angle", "phase_shift"))
    ctf = ElementTree.SubElement(root, "CTF")
    voltage, aberration, contrast = series.known(
        "warp", "voltage", "spherical_aberration", "amplitude_contrast")
    for name, value in (("PixelSize", series.pixel_size), ("Voltage", voltage),
                        ("Cs", aberration), ("Cc", series.chromatic_aberration),
                        ("Amplitude", contrast), ("Defocus", (u + v).mean() / 2e4)):
        if value is not None:
            ElementTree.SubElement(ctf, "Param", Name=name, Value=_text(value))
    # The larger defocus is the mean and half of delta, along the angle.
    angle = (np.where(u >= v, angle, angle + 90) + 90) % 180 - 90
    for name, nodes in (("GridCTF", (u + v) / 2e4), ("GridCTFDefocusDelta", np.abs(u - v) / 1e4),
                        ("GridCTFDefocusAngle", angle), ("GridCTFPhase", phase / 180)):
        grid = ElementTree.SubElement(root, name, Width="1", Height="1", Depth=str(len(nodes)))
        for z, value in enumerate(nodes):
            ElementTree.SubElement(grid, "Node", X="0", Y="0", Z=str(z), Value=_text(value))


def _text(value: float) -> str:
    return f"{value:.9g}"
