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
    from tem_taichi.experiment import Experiment, images
    from tem_taichi.instrument.exposure import Exposure
    from tem_taichi.instrument.multislice import multislice
    from tem_taichi.instrument.optics import Optics, ctf, form_image
    from tem_taichi.instrument.projection import Projection
    from tem_taichi.instrument.tem import TEM
    from tem_taichi.inverse.fisher import error_bars
    from tem_taichi.inverse.minimise import Optimiser
    from tem_taichi.inverse.problem import Problem
    from tem_taichi.noise.camera import Camera
    from tem_taichi.noise.detector import Detector, detect, expected_counts
    from tem_taichi.noise.likelihood import log_prob
    from tem_taichi.scene.load import load_scene
    from tem_taichi.scene.settings import Scene
    from tem_taichi.series.record import TiltSeries
    from tem_taichi.series.simulate import simulate
    from tem_taichi.specimen.atoms import Atoms, read_structure
    from tem_taichi.specimen.particles import ParticlesInIce, kind_of
    from tem_taichi.specimen.poses import Poses
    from tem_taichi.specimen.potential import slice_potential

__version__ = "0.1.0"

__all__ = [
    "TEM", "Atoms", "Camera", "Detector", "Experiment", "Exposure", "Optics", "Optimiser",
    "ParticlesInIce", "Poses", "Problem", "Projection", "Scene", "TiltSeries", "ctf", "detect",
    "error_bars", "expected_counts", "form_image", "images", "init", "kind_of", "load_scene",
    "log_prob", "multislice", "read_structure", "simulate", "slice_potential",
]

_MODULES = {
    "TEM": "instrument.tem", "Atoms": "specimen.atoms", "Camera": "noise.camera",
    "Detector": "noise.detector", "Experiment": "experiment", "Exposure": "instrument.exposure",
    "Optics": "instrument.optics", "Optimiser": "inverse.minimise",
    "ParticlesInIce": "specimen.particles", "Poses": "specimen.poses",
    "Problem": "inverse.problem", "Projection": "instrument.projection",
    "Scene": "scene.settings", "TiltSeries": "series.record", "ctf": "instrument.optics",
    "detect": "noise.detector", "error_bars": "inverse.fisher",
    "expected_counts": "noise.detector", "form_image": "instrument.optics",
    "images": "experiment", "init": "device", "kind_of": "specimen.particles",
    "load_scene": "scene.load", "log_prob": "noise.likelihood",
    "multislice": "instrument.multislice", "read_structure": "specimen.atoms",
    "simulate": "series.simulate", "slice_potential": "specimen.potential",
}

# Taichi greets on standard output when imported; a program that prints results should not.
os.environ.setdefault("ENABLE_TAICHI_HEADER_PRINT", "False")
# Large arrays in pages of 2 MB: their first use, and so every fresh result, takes half of the time.
# torch reads this when it makes its first array.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
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
