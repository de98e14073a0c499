"""Samples of a data set as judges read them: SHREC's files, and what the microscope shows."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
import torch
import yaml
from numpy.typing import NDArray

from experiments import matching
from experiments.picker_scores import Truth
from tem_taichi.files.mrc import read_volume
from tem_taichi.scene.dataset import load_dataset, name_of, split


@dataclass(frozen=True)
class Sample:
    """One sample of a data set."""

    folder: Path

    @cached_property
    def model(self) -> Path:
        """SHREC's folder."""
        return self.folder / "shrec" / "model_0"

    @cached_property
    def kinds(self) -> list[str]:
        """Names, by their numbers from 1."""
        lines = (self.model / "class_conversion_table.txt").read_text().split()
        return lines[::2]

    @cached_property
    def volume(self) -> NDArray[np.float32]:
        """The tomogram, (nz, ny, nx)."""
        return read_volume(self.model / "reconstruction.mrc")[0]

    @cached_property
    def voxel(self) -> float:
        """Of the tomogram [A]."""
        return read_volume(self.model / "reconstruction.mrc")[1]

    def reference(self, kind: str) -> NDArray[np.float32]:
        """Potential of a kind, its middle at n // 2."""
        return read_volume(self.folder / "shrec" / "references" / f"{kind}.mrc")[0]

    def reference_mask(self, kind: str) -> NDArray[np.float32]:
        """Mask of a kind, its middle at n // 2."""
        return read_volume(self.folder / "shrec" / "references" / f"{kind}_mask.mrc")[0]

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """Of a ball as large as each kind's mask, from 1 [voxel]."""
        return np.array([0.0, *(np.cbrt(3 * self.reference_mask(kind).sum() / (4 * np.pi))
                                for kind in self.kinds)])

    @cached_property
    def truth(self) -> Truth:
        """SHREC's list and instance mask."""
        lines = [line.split() for line in
                 (self.model / "particle_locations.txt").read_text().splitlines()]
        places = np.array([line[3:0:-1] for line in lines], np.float64).reshape(-1, 3)
        kinds = np.array([self.kinds.index(line[0]) + 1 for line in lines], np.int64)
        instances = read_volume(self.model / "occupancy_mask.mrc")[0].astype(np.int32)
        return Truth(places, kinds, instances, self.radius)

    @cached_property
    def spread(self) -> torch.Tensor:
        """What its tomogram shows of a point."""
        tilts = pd.read_csv(next(self.folder.glob("*_tilts.csv")))
        scene = yaml.safe_load((self.folder / "scene.yaml").read_text())
        optics = _optics(next(self.folder.glob("*_particles.star")))
        return matching.point_spread(
            tilts, self.volume.shape, self.voxel, float(scene["microscope"]["voltage"]),
            float(scene["microscope"]["spherical_aberration"]), optics)


def _optics(star: Path) -> float:
    """Amplitude contrast of a list of particles."""
    return float(starfile.read(star, always_dict=True)["optics"]["rlnAmplitudeContrast"].iloc[0])


def samples(folder: Path, part: str) -> list[Sample]:
    """Whole samples of a data set for training or validation."""
    dataset = load_dataset(folder / "dataset.yaml")
    return [Sample(folder / "samples" / name_of(dataset, n)) for n, of in enumerate(split(dataset))
            if of == part and (folder / "checksums" / f"{name_of(dataset, n)}.sha256").is_file()]
