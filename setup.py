"""The packages to install: pyproject.toml can find them below one folder only.

Those below tem_taichi/, and kernels/ and conf/ beside it, which become parts of it. Folders of data
alone are packages too, as Python sees them.
"""

from setuptools import find_namespace_packages, setup

BESIDE = ("kernels", "conf")

setup(
    packages=[*find_namespace_packages(include=["tem_taichi", "tem_taichi.*"]),
              *(f"tem_taichi.{name}" for folder in BESIDE
                for name in find_namespace_packages(include=[folder, f"{folder}.*"]))],
    package_dir={f"tem_taichi.{folder}": folder for folder in BESIDE},
)
