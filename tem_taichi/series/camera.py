"""The detector that settings describe: those of a scene, of conf/detector, or of a fit."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from tem_taichi.noise import curves
from tem_taichi.noise.curves import Curve
from tem_taichi.noise.detector import Detector
from tem_taichi.scene.load import CONFIG_FOLDER
from tem_taichi.scene.yaml_files import read_yaml


def detector_from_config(node: Any) -> Detector:
    """Detector of a scene's `DetectorSettings`, or of the same keys in a mapping.

    Args:
        node: `scene.detector`, or mapping or object with attributes, of
            name, voltage, halves: not used here; kind, gain, integer: as in `Detector`;
            dqe: DQE(0), or dqe_table: rows [frequency, value], or dqe_file: file of DQE(w) that
            `read_mtf` reads, or none of them;
            mtf: five numbers, or mtf_table: rows [frequency, value], or mtf_file: file for
            `read_mtf`, or none of them. Absent keys have `Detector`'s defaults.

    Raises:
        ValueError: if a curve is given twice, a key is unknown, a file cannot be read or a value
            is not allowed.
    """
    given = dict(node) if isinstance(node, Mapping) else dict(vars(node))
    given = {key: value for key, value in given.items()
             if value is not None and key not in ("name", "voltage", "halves")}
    unknown = given.keys() - {field.name for field in fields(Detector)}
    unknown -= {"mtf_table", "mtf_file", "dqe_table", "dqe_file"}
    if unknown:
        raise ValueError(f"detector.{min(unknown)}: no such key")
    for curve in ("mtf", "dqe"):
        chosen = [key for key in (curve, f"{curve}_table", f"{curve}_file") if key in given]
        if len(chosen) > 1:
            raise ValueError(f"detector.{chosen[0]} and detector.{chosen[1]}: give one of them and "
                             "set the other to null")
        for key in chosen:
            given[curve] = _read_curve(key, given.pop(key))
    return Detector(**given)


def detector_of_name(name: str) -> Detector:
    """A detector that comes with the package, or that of a file such as recipe=detector writes.

    Args:
        name: of the detector, or of its YAML file.

    Raises:
        ValueError: if there is none, or as `detector_from_config`.
    """
    folder = CONFIG_FOLDER / "detector"
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"detector={name}: must be a YAML file that is there, or one of "
                         f"{', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"detector={name}: must be a mapping of keys, such as gain and mtf")
    return detector_from_config(content)


def _read_curve(key: str, value: Any) -> Curve:
    """Curve that one configuration key describes."""
    if key.endswith("_file"):
        try:
            return curves.read_mtf(value)
        except ValueError as error:
            raise ValueError(f"detector.{key}: {error}") from error
    if not key.endswith("_table"):
        # Also a configuration library's own kind of list.
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    rows = [list(row) for row in value]
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"detector.{key}: every row must be [frequency, value]")
    table = np.array(rows, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]
