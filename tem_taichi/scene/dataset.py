"""A data set: a template scene, what varies of it, and the scene of each sample.

A sample is a function of the settings and its number alone, so that any can be made again, in any
order and anywhere.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tem_taichi import checks
from tem_taichi.scene.load import apply, explain, load_scene, parse_values
from tem_taichi.scene.ranges import Range, flattened
from tem_taichi.scene.references import hidden, resolved
from tem_taichi.scene.settings import FORMATS, Scene
from tem_taichi.scene.specimen import NAME, NAME_SAYS
from tem_taichi.scene.typed import from_plain, keep_tuples, to_plain
from tem_taichi.scene.yaml_files import read_yaml
from tem_taichi.streams import Key

LAUNCHERS = ("joblib", "ray", "submitit_local", "submitit_slurm")
OWN = ("name", "seed", "output", "overwrite", "force", "formats")
"""Keys of a scene that the data set itself decides."""
SAMPLES = "samples"
"""Folder of the samples in a data set's."""


@dataclass(frozen=True)
class Dataset:
    """Everything that decides a data set, and how it is made."""

    scene: str | None = None
    """template, a scene file; null = the embedded example"""
    overrides: tuple[str, ...] = ()
    """of the template: a mapping of its keys, as {dose: 2, detector: k2_300kv}, or a list as on the
    command line of simulate, ["dose=2", "~specimen.particles.apoferritin"]"""
    vary: Mapping[str, Range] = field(default_factory=dict)
    """keys of the scene, each with a distribution: {uniform: [from, to]}, {log_uniform: [from,
    to]}, {normal: [mean, deviation]}, {integer: [from, to]} or {choice: [one, another]}, also of
    files to choose, as detector: {choice: [k2_300kv, k3_300kv]}"""
    samples: int = 10
    """how many; more can be added later by the same command"""
    seed: int = 0
    """of everything random"""
    output: str = "tem_taichi_dataset"
    """folder for the data set"""
    name: str | None = None
    """of samples, before their number; null = that of the output folder"""
    formats: tuple[str, ...] = ("shrec", "copick", "relion5", "coordinates")
    """of each sample, as in a scene; of relion5 and copick one project holds all samples"""
    tomogram: tuple[str, ...] | None = None
    """settings of recipe=reconstruct for a tomogram of each sample, by the true alignment, as
    {method: sirt, halves: true}; null = none but the back-projection of shrec and copick"""
    validation: float = 0.2
    """part of the samples that split.csv sets aside for validation"""
    launcher: str = "joblib"
    """what runs samples side by side: joblib, processes of this machine; ray, on the cluster that
    `address` names; submitit_slurm, jobs of SLURM, or submitit_local, the same on this machine"""
    workers: int | None = None
    """samples at a time; null = as many as there are cores and memory"""
    address: str | None = None
    """of launcher=ray: of a running cluster, or auto; null = one of this machine alone"""
    slurm: Mapping[str, str] = field(default_factory=dict)
    """of launcher=submitit_slurm: its parameters, as {slurm_partition: gpu, timeout_min: 60}"""
    only: tuple[int, ...] | None = None
    """numbers of samples, from 0, to make alone; null = all"""

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.whole("samples", self.samples, 1, 1_000_000)
        checks.whole("seed", self.seed, 0, 2**63 - 1)
        checks.check(bool(self.output.strip()), "output", self.output, "the name of a folder")
        checks.check(self.name is None or bool(re.fullmatch(NAME, self.name)), "name", self.name,
                     NAME_SAYS)
        for n, name in enumerate(self.formats):
            checks.one_of(f"formats[{n}]", name, FORMATS)
        checks.check(0 <= self.validation < 1, "validation", self.validation,
                     "at least 0 and below 1")
        checks.one_of("launcher", self.launcher, LAUNCHERS)
        if self.workers is not None:
            checks.whole("workers", self.workers, 1, 100_000)
        for n, number in enumerate(self.only or ()):
            checks.whole(f"only[{n}]", number, 0, self.samples - 1)
        for key, launcher in (("address", "ray"), ("slurm", "submitit_slurm")):
            checks.check(not getattr(self, key) or self.launcher == launcher, key,
                         getattr(self, key), f"left out where launcher is not {launcher}")
        for key in self.vary:
            checks.check(key.split(".")[0] not in OWN, "vary", key,
                         "a key that a data set does not decide itself")
        for line in self.overrides:
            key = line.lstrip("~+").partition("=")[0].split(".")[0]
            checks.check(key not in OWN, "overrides", line,
                         f"of other keys than {', '.join(OWN)}, which are the data set's")

    @property
    def numbers(self) -> list[int]:
        """Of the samples to make."""
        return list(range(self.samples)) if self.only is None else sorted(set(self.only))

    @property
    def folder(self) -> Path:
        """The output folder, absolute."""
        return Path(os.path.abspath(os.path.expanduser(self.output)))

    @property
    def stem(self) -> str:
        """Of samples' names."""
        return self.name or re.sub(r"[^A-Za-z0-9_-]+", "_", self.folder.name).strip("_-") or "set"


def load_dataset(path: str | Path | None, overrides: Sequence[str] = ()) -> Dataset:
    """Read a data set's file, apply overrides and check every value.

    Args:
        path: YAML file of a mapping of `Dataset`'s keys; None = none.
        overrides: such as "samples=100" or "vary.dose={uniform: [2, 3]}", in Hydra's grammar.

    Returns:
        The settings; the template's file is an absolute path, looked for in the file's folder,
        then in the working folder.

    Raises:
        ValueError: for anything wrong, with one line that names key, value and what is allowed.
    """
    content: dict[Any, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
        content = read_yaml(Path(path))
        if not isinstance(content, dict):
            raise ValueError(f"{path}: must be a mapping of {', '.join(_defaults())}")
        if "defaults" in content:
            raise ValueError(f"{path}: is a scene; a data set's file names one as `scene: FILE`")
    parsed = parse_values(overrides)
    try:
        # None, since neither a list nor a mapping takes the other in.
        merged = OmegaConf.create(hidden(_defaults() | {"overrides": None} | content))
        for one in parsed:
            apply(one, merged)
        plain = OmegaConf.to_container(merged, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    assert isinstance(plain, dict)
    plain = resolved(plain)
    if plain.get("vary") is not None:
        plain["vary"] = flattened(plain["vary"])
    plain["overrides"] = plain["overrides"] or []
    for key in ("overrides", "tomogram"):
        if isinstance(plain.get(key), Mapping):
            plain[key] = [f"{name}={_text(value)}"
                          for name, value in flattened(plain[key], key).items()]
    if plain.get("scene") is not None:
        plain["scene"] = _found(str(plain["scene"]), path)
    return from_plain(Dataset, plain)


def _text(value: Any) -> str:
    """A value in Hydra's grammar."""
    return value if isinstance(value, str) and re.fullmatch(
        r"[A-Za-z_][A-Za-z0-9_]*", value) else json.dumps(value)


def _defaults() -> dict[str, Any]:
    return {one.name: to_plain(one.default if one.default_factory is MISSING
                               else one.default_factory()) for one in fields(Dataset)}


def _found(name: str, path: str | Path | None) -> str:
    """An absolute path, beside the data set's file or in the working folder."""
    beside = [Path(path).resolve().parent] if path is not None else []
    for folder in (*beside, Path.cwd()):
        if (file := folder / os.path.expanduser(name)).is_file():
            return os.path.abspath(file)
    raise ValueError(f"scene={name}: no such file")


def drawn(dataset: Dataset, number: int) -> dict[str, Any]:
    """What varies, as it is in one sample: a key's value depends on no other key and sample.

    Args:
        dataset: the settings.
        number: of the sample, from 0.
    """
    return {key: one.draw(Key.of(dataset.seed, "samples", key).generator(number))
            for key, one in dataset.vary.items()}


def name_of(dataset: Dataset, number: int) -> str:
    """A sample's name, the same however many there are."""
    return f"{dataset.stem}_{number:04d}"


def scene_of(dataset: Dataset, number: int, values: Mapping[str, Any] | None = None) -> Scene:
    """The scene of a sample.

    Args:
        dataset: the settings.
        number: of the sample, from 0.
        values: instead of those drawn.

    Raises:
        ValueError: as `load_scene`; what varies is named as `vary`.
    """
    numbers = Key(dataset.seed, "samples").generator(number)
    name = name_of(dataset, number)
    own = [f"seed={int(numbers.integers(2**63 - 1))}", f"name={name}", "overwrite=false",
           f"output={json.dumps(str(dataset.folder / SAMPLES / name))}",
           f"formats=[{','.join(dataset.formats)}]"]
    varied = drawn(dataset, number) if values is None else values
    return load_scene(dataset.scene, [*dataset.overrides, *own], varied)


def check_ends(dataset: Dataset) -> None:
    """ValueError unless scenes allow every distribution's ends, one at a time.

    Raises:
        ValueError: with one line that names the key that varies.
    """
    first = drawn(dataset, 0)
    for key, one in dataset.vary.items():
        for value in dict.fromkeys(map(json.dumps, one.ends)):
            try:
                scene_of(dataset, 0, first | {key: json.loads(value)})
            except ValueError as error:
                raise ValueError(f"vary.{key}: {value}: {error}") from error


def split(dataset: Dataset) -> list[str]:
    """Each sample's part, train or validation, which stays as the set grows.

    Samples are alike, so that every so manieth is set aside, from a first one that the seed draws:
    of n samples n times `validation`, rounded up or down.
    """
    begun = Key.of(dataset.seed, "samples", "validation").generator().random()
    ends = np.floor((np.arange(dataset.samples + 1) + begun) * dataset.validation)
    return ["validation" if more else "train" for more in np.diff(ends) > 0]
