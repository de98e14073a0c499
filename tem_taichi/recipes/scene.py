"""What fits tell of a scene, for `python -m tem_taichi.simulate`."""

from typing import Any

import numpy as np
import pandas as pd
import yaml

from tem_taichi.estimate.twin_scene import short

Content = dict[str, Any]


def scene_text(about: str, content: Content) -> str:
    """A scene as YAML; what it does not name is the default's.

    Args:
        about: what the scene is of, one line.
        content: keys of a scene.
    """
    text = yaml.safe_dump({"defaults": ["simulate", "_self_"], **content}, sort_keys=False,
                          default_flow_style=None, width=95)
    return f"# {about}, estimated by tem_taichi; the rest is the default's\n{text}"


def micrograph_scene(microscope: Content, row: dict[str, Any], shape: tuple[int, int] | None,
                     pixel_size: float) -> Content:
    """A micrograph with the lens of a fit.

    Args:
        microscope: keys of a scene's microscope that the fit took for known.
        row: the fit's numbers.
        shape: (ny, nx) of the image; None = unknown, of a spectrum.
        pixel_size: [A].
    """
    size = {} if shape is None else {"shape": list(shape)}
    return {**size, "pixel_size": short(pixel_size),
            "microscope": microscope,
            "optics": {"defocus": short((row["defocus_u"] + row["defocus_v"]) / 2),
                       "astigmatism": short(row["defocus_u"] - row["defocus_v"]),
                       "astigmatism_angle": short(row["astigmatism_angle"]),
                       "phase_shift": short(row["phase_shift"])},
            "tilts": {"scheme": "listed", "angles": [0.0]}}


def series_scene(microscope: Content, rows: list[dict[str, Any]], tilts: pd.DataFrame,
                 shape: tuple[int, int] | None, pixel_size: float) -> Content | None:
    """A tilt series with the defocus of each fit, the median where a fit is not reliable.

    Args:
        microscope: keys of a scene's microscope that the fits took for known.
        rows: numbers of each fit, all of one astigmatism.
        tilts: of the images: tilt_angle, axis_angle [deg] and, where they are known,
            acquisition_index and dose [e-/A^2].
        shape: (ny, nx) of the images; None = unknown, of spectra.
        pixel_size: [A].

    Returns:
        None if no fit is reliable.
    """
    good = np.array([row["reliable"] for row in rows])
    if not good.any():
        return None
    mean = np.array([(row["defocus_u"] + row["defocus_v"]) / 2 for row in rows])
    middle = np.median(mean[good])
    order = np.argsort(tilts["acquisition_index"].to_numpy(), kind="stable") if (
        "acquisition_index" in tilts) else np.arange(len(rows))
    content = micrograph_scene(microscope, rows[int(good.argmax())], shape, pixel_size)
    content["optics"]["defocus"] = short(middle)
    offsets = np.where(good, mean, middle) - short(middle)
    content["tilts"] = {
        "scheme": "listed", "angles": tilts["tilt_angle"].to_numpy(float)[order].round(4).tolist(),
        "axis_angle": short(tilts["axis_angle"].iloc[0]),
        "defocus_offsets": offsets[order].round(1).tolist()}
    if "dose" in tilts and (tilts["dose"] > 0).all():
        content["tilts"]["doses"] = tilts["dose"].to_numpy(float)[order].round(4).tolist()
    return content
