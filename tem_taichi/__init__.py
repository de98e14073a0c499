"""Differentiable transmission electron microscopy: from atoms to detector counts, and back.

Names below are imported when first used, so that `import tem_taichi` is quick.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tem_taichi.waiting import set_waiting

if TYPE_CHECKING:
    from tem_taichi.device import init
    from tem_taichi.instrument.multislice import multislice
    from tem_taichi.instrument.optics import Optics, ctf, form_image
    from tem_taichi.noise.detector import Detector, detect, expected_counts
    from tem_taichi.noise.likelihood import log_prob
    from tem_taichi.scene.load import load_scene
    from tem_taichi.scene.settings import Scene
    from tem_taichi.series.record import TiltSeries
    from tem_taichi.series.simulate import simulate
    from tem_taichi.specimen.atoms import Atoms, read_structure
    from tem_taichi.specimen.potential import slice_potential

__version__ = "0.1.0"

__all__ = [
    "Atoms", "Detector", "Optics", "Scene", "TiltSeries", "ctf", "detect", "expected_counts",
    "form_image", "init", "load_scene", "log_prob", "multislice", "read_structure", "simulate",
    "slice_potential",
]

_MODULES = {
    "Atoms": "specimen.atoms", "Detector": "noise.detector", "Optics": "instrument.optics",
    "Scene": "scene.settings", "TiltSeries": "series.record", "ctf": "instrument.optics",
    "detect": "noise.detector", "expected_counts": "noise.detector",
    "form_image": "instrument.optics", "init": "device", "load_scene": "scene.load",
    "log_prob": "noise.likelihood", "multislice": "instrument.multislice",
    "read_structure": "specimen.atoms", "simulate": "series.simulate",
    "slice_potential": "specimen.potential",
}

# Taichi greets on standard output when imported; a program that prints results should not.
os.environ.setdefault("ENABLE_TAICHI_HEADER_PRINT", "False")
set_waiting()

# In a bare checkout kernels/ and conf/ stand beside this package, not inside it; an installed
# wheel has them inside and this does nothing.
_root = Path(__file__).resolve().parent.parent
if (_root / "kernels" / "__init__.py").is_file() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # also over a submodule of the same name
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
