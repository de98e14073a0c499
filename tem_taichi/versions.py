"""What a result was made with."""

import platform
from importlib.metadata import version

import tem_taichi


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("taichi", "torch", "numpy", "scipy", "gemmi", "hydra-core")
    return {"tem_taichi": tem_taichi.__version__, "python": platform.python_version(),
            **{name: version(name) for name in names}}
