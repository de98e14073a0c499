"""Hydra's launchers, which run the scenes of a sweep side by side, on this machine or a cluster.

Only the command line chooses one, `hydra/launcher=joblib`; a scene file is data and starts nothing.
A job runs the scene that was read and checked here, whatever happens to its file meanwhile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tem_taichi.scene.load import explain

CHOICE, SETTING = "hydra/launcher=", "hydra.launcher."
"""How words of the command line begin that choose a launcher, and that set its keys."""
LAUNCHERS = {"basic": "", "joblib": "joblib", "ray": "ray", "submitit_local": "submitit",
             "submitit_slurm": "submitit"}
"""Those allowed, and the extra of this package that installs each; basic = one after the other."""


@dataclass(frozen=True)
class Launcher:
    """A launcher and its settings."""

    name: str = "basic"
    """one of `LAUNCHERS`"""
    settings: tuple[str, ...] = ()
    """such as "hydra.launcher.n_jobs=2", in Hydra's grammar"""


def launcher_of(words: Sequence[str]) -> tuple[Launcher, list[str]]:
    """The launcher that words of the command line choose, and the other words.

    Raises:
        ValueError: for a launcher that is not allowed or not installed.
    """
    chosen = [word.removeprefix(CHOICE) for word in words if word.startswith(CHOICE)]
    settings = tuple(word for word in words if word.startswith(SETTING))
    name = chosen[-1] if chosen else "basic"
    if name not in LAUNCHERS:
        raise ValueError(f"{CHOICE}{name[:60]}: must be one of {', '.join(LAUNCHERS)}")
    if settings and name == "basic":
        raise ValueError(f"{settings[0][:99]}: must come with {CHOICE}NAME; basic has no settings")
    for word in settings:
        key, _, value = word.removeprefix(SETTING).partition("=")
        if key.strip().startswith("_") or "${" in value:
            raise ValueError(f"{word[:99]}: must set a plain value of a key of the launcher")
    extra = LAUNCHERS[name]
    if extra and not _is_installed(f"hydra_plugins.hydra_{extra}_launcher"):
        raise ValueError(f"{CHOICE}{name}: is not installed; pip install 'tem_taichi[{extra}]'")
    return Launcher(name, settings), [word for word in words
                                      if not word.startswith((CHOICE, SETTING))]


def launch(launcher: Launcher, job: Callable[[int], Any], count: int, folder: Path) -> list[Any]:
    """Hand jobs to a launcher and wait for all of them.

    Args:
        launcher: other than basic.
        job: called with 0 to count - 1, in other processes: it must be possible to pickle.
        count: of jobs.
        folder: for what the launcher itself writes; what is empty of it is removed at the end.

    Returns:
        What the jobs return, in their order; what one of them raises is raised.

    Raises:
        ValueError: for a setting that the launcher does not have.
    """
    before, new = Singleton.get_state(), [one for one in folder.parents if not one.exists()]
    try:
        setup_globals()
        JobRuntime.instance().set("name", "tem_taichi")
        loader = ConfigLoaderImpl(create_config_search_path(None))
        try:
            config = loader.load_configuration(None, [
                f"{CHOICE}{launcher.name}", *launcher.settings, "hydra/job_logging=none",
                "hydra/hydra_logging=none", "hydra.output_subdir=null", "hydra.job.chdir=false",
                f"hydra.sweep.dir={str(folder)!r}", "hydra.sweep.subdir=${hydra.job.num}",
            ], RunMode.MULTIRUN)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(f"{CHOICE}{launcher.name}: {explain(error)}") from error
        plugin = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=_Task(job), config=config)
        runs = plugin.launch([[f"+job={number}"] for number in range(count)], initial_job_idx=0)
        return [run.return_value for run in runs]
    finally:
        Singleton.set_state(before)  # of a program that itself runs under Hydra
        for empty in [*sorted(folder.rglob("*"), reverse=True), folder, *new]:
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()


@dataclass(frozen=True)
class _Task:
    """A job by its number in a configuration, as Hydra calls it."""

    job: Callable[[int], Any]

    def __call__(self, config: DictConfig) -> Any:
        return self.job(config.job)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
