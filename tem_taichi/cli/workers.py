"""Samples side by side: in processes of this machine, on a Ray cluster, or as jobs of SLURM.

Each yields what became of a sample as it ends, and leaves out those whose process died: whoever
asks begins these again. None of them loses the others with it: joblib begins a new set of
processes, Ray and submitit know each sample as a task or job of its own.
"""

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
_LOOK = 0.5
"""Between two looks at jobs [s]."""
EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "submitit",
          "submitit_slurm": "submitit"}
"""The package that each launcher is."""


def check_launcher(name: str) -> None:
    """ValueError unless what a launcher needs is installed."""
    try:
        importlib.import_module(EXTRAS[name])
    except ImportError as error:
        raise ValueError(f"launcher={name}: {EXTRAS[name]} is not installed; pip install "
                         "'tem_taichi[cluster]'") from error


def in_processes(job: Callable[[int], Result], numbers: Sequence[int],
                 workers: int) -> Iterator[Result]:
    """By joblib; a process that dies takes those beside it along, which end the round.

    Args:
        job: called with each number, in another process.
        numbers: of the samples.
        workers: at a time.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    side_by_side = Parallel(workers, return_as="generator_unordered", batch_size=1,
                            pre_dispatch=workers)
    try:
        yield from side_by_side(delayed(job)(number) for number in numbers)
    except BrokenProcessPool:  # TerminatedWorkerError is one
        return


def on_ray(job: Callable[[int], Result], numbers: Sequence[int], workers: int | None,
           address: str | None) -> Iterator[Result]:
    """By Ray, a core each; a sample whose worker or node dies is begun again by Ray itself.

    Args:
        job: as in `in_processes`.
        numbers: of the samples.
        workers: at a time, or None = as many as the cluster has cores.
        address: of a cluster; None = one of this machine, which ends with the run.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        settings: dict[str, Any] = {"num_cpus": workers} if address is None else {}
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **settings)
    try:
        task: Any = ray.remote(num_cpus=1, max_retries=3)(_in_folder)
        limit = workers or int(ray.cluster_resources().get("CPU", 1))
        rest = list(reversed(numbers))
        running: list[Any] = []
        while rest or running:
            while rest and len(running) < limit:
                running.append(task.remote(os.getcwd(), job, rest.pop()))
            done, running = ray.wait(running)
            for one in done:
                try:
                    yield ray.get(one)
                except ray.exceptions.RayError:
                    continue
    finally:
        if own:
            ray.shutdown()


def as_jobs(job: Callable[[int], Result], numbers: Sequence[int], workers: int | None,
            cluster: str, parameters: dict[str, Any], folder: Path) -> Iterator[Result]:
    """By submitit.

    Args:
        job: as in `in_processes`.
        numbers: of the samples.
        workers: at a time; None = as SLURM says.
        cluster: slurm or local.
        parameters: of submitit's executor.
        folder: for its logs, on a disk that all machines see.
    """
    import submitit

    executor = submitit.AutoExecutor(folder, cluster=cluster)
    executor.update_parameters(**({"timeout_min": 24 * 60, "cpus_per_task": 1} | parameters))
    rest = list(reversed(numbers))
    running: list[Any] = []
    try:
        while rest or running:
            while rest and (workers is None or len(running) < workers):
                running.append(executor.submit(_in_folder, os.getcwd(), job, rest.pop()))
            ended = [one for one in running if one.done()]
            running = [one for one in running if one not in ended]
            for one in ended:
                try:
                    yield one.result()
                except (submitit.core.utils.UncompletedJobError,
                        submitit.core.utils.FailedJobError):
                    continue
            if not ended:
                time.sleep(_LOOK)
    finally:
        for one in running:
            one.cancel()


def _in_folder(folder: str, job: Callable[[int], Result], number: int) -> Result:
    """A job where the names of files mean what they do here."""
    os.chdir(folder)
    return job(number)
