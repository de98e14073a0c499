"""One scene: what a run of it needs, checked before the long computation, and the run itself."""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tem_taichi.cli.output import write_result
from tem_taichi.cli.progress import progress
from tem_taichi.device import init
from tem_taichi.files.folder import check_new_folder, new_folder, said_of_output
from tem_taichi.files.unfinished import remove_parts, unfinished
from tem_taichi.files.workplace import clear_leftovers, output_folder
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.series.build import build_specimen
from tem_taichi.series.cost import DAY, check_memory, check_time, least_time
from tem_taichi.series.finished import files_read, is_finished, mean_counts
from tem_taichi.series.plan import Plan, plan
from tem_taichi.series.record import TiltSeries, in_field
from tem_taichi.series.simulate import simulate
from tem_taichi.series.trial import foreseen_time
from tem_taichi.specimen.particles import ParticlesInIce

COMMAND = "simulate"
"""What wrote an output, in its metadata."""
NOTHING = "what was being computed is not written"
"""Said where a run is stopped."""
_NEAR = 20.0
"""What a run takes over the least it may take, at most; then it may be more than a day."""


def check_output(scene: Scene, read: Sequence[str] = ()) -> None:
    """Raise a ValueError if a run could not write its folder; `read` as in `prepare`."""
    with said_of_output(scene.output):
        check_new_folder(scene.output, COMMAND, scene.overwrite, _inputs(scene, read))


def prepare(scene: Scene, read: Sequence[str] = (),
            may_exist: bool = False) -> tuple[Plan, ParticlesInIce]:
    """What a run needs; finds whatever is wrong with a scene before the long computation.

    Args:
        scene: from `load_scene`.
        read: files that it was read from, which are never overwritten.
        may_exist: whether to let a folder pass that is there already.

    Raises:
        ValueError: with one line that names key, value and what is allowed.
    """
    if not (may_exist and Path(scene.output).expanduser().is_dir()):
        check_output(scene, read)
    try:
        init(scene.compute.arch, scene.compute.dtype)
    except ValueError as error:
        raise ValueError(f"compute.{error}") from error
    grids = plan(scene)
    specimen = build_specimen(scene)
    angles = grids.tilts["tilt_angle"].to_numpy()
    memory = check_memory(scene, grids.instrument, angles, specimen)
    seconds = least_time(scene, grids.instrument, angles, specimen)
    if DAY / _NEAR < seconds < DAY and not scene.force:
        seconds = foreseen_time(scene, grids, specimen)
    check_time(scene, seconds, len(grids.exposures))
    return replace(grids, memory=memory), specimen


def _inputs(scene: Scene, read: Sequence[str]) -> list[str]:
    """Every file that a run reads."""
    return [*read, *files_read(scene)]


def _tidy(output: str) -> None:
    """Take away what a killed run left beside an output."""
    with said_of_output(output):
        clear_leftovers(output)


def run(scene: Scene, read: Sequence[str] = ()) -> None:
    """Simulate a scene with a progress bar and write its output folder; as `prepare`.

    Images that an interrupted run of the same scene has finished are kept and not made again.
    """
    _tidy(scene.output)
    check_output(scene, read)
    with unfinished(scene.output) as parts:
        grids, specimen = prepare(scene, read)
        for doubt in doubts(scene):
            print(f"warning: {doubt}", file=sys.stderr)
        total, done, kept = len(grids.tilts), 0, -1

        def count(images: int, _: int) -> None:
            nonlocal done, kept
            if kept < 0 < images:
                print(f"{images} of {total} images are there already, of an interrupted run")
            kept, done = images if kept < 0 else kept, images
            report(done - kept, total - kept)

        try:
            with progress(f"simulating {scene.name}", total) as report:
                series = _simulated(scene, count, specimen, parts)
            with new_folder(scene.output, COMMAND, scene.overwrite, _inputs(scene, read)) as place:
                files = write_result(place, scene, series, output_folder(scene.output))
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(
                f"{done} of {total} images are finished and kept, the same command goes on from "
                "there" if done else f"{NOTHING}, 0 of {total} images") from error
        except OSError as error:
            raise OSError(f"{error}; {done} of {total} images are finished and kept") from error
        _summarise(scene, series)
        del series  # whose images are maps of what goes now
        remove_parts(parts)
    print(f"wrote {scene.output}/: " + ", ".join(files))


def _simulated(scene: Scene, count: Callable[[int, int], None], specimen: ParticlesInIce,
               parts: Path) -> TiltSeries:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"detector\.(voltage|gain)")  # said above
        try:
            return simulate(scene, count, specimen, parts)
        except RuntimeError as error:  # torch's own kinds, for the CPU and for GPUs
            if "memory" not in str(error):
                raise
            raise MemoryError(f"shape={list(scene.shape)}: needs more memory than there is; lower "
                              "it, interaction.margin or interaction.oversampling") from error


def _summarise(scene: Scene, series: TiltSeries) -> None:
    particles, clean = series.known("the run", "particles", "noise_free")
    kinds = particles["kind"].value_counts(sort=False)
    print(f"{len(series.images)} images of "
          + (", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no particles")
          + f" in {sum(series.seconds.values()):.1f} s ("
          + ", ".join(f"{name} {s:.1f}" for name, s in series.seconds.items()) + ")")
    print(f"mean {mean_counts(clean):.3g} counts a pixel, seed {scene.seed}")
    if beyond := int((~in_field(series)).sum()):
        print(f"{beyond} of {len(particles)} particles are centred outside the field: "
              f"marked in {scene.name}_particles.star (temInField), not in other programs' lists")


def left_to_run(scenes: Sequence[Scene], read: Sequence[str]) -> list[Scene]:
    """The scenes of a sweep whose output is not there yet, each checked; `read` as in `prepare`.

    Raises:
        ValueError: if one of them cannot run, so that none does.
    """
    for scene in scenes:
        _tidy(scene.output)
    kept = [scene for scene in scenes if not scene.overwrite and is_finished(scene)]
    left = [scene for scene in scenes if scene not in kept]
    for scene in left:
        prepare(scene, read)
    for scene in kept:
        print(f"{scene.output}: is finished and kept; overwrite=true computes it again")
    return left


def sweep(scenes: Sequence[Scene], read: Sequence[str]) -> None:
    """Run all scenes whose output is not there yet, one after the other; as `left_to_run`."""
    left = left_to_run(scenes, read)
    for done, scene in enumerate(left, len(scenes) - len(left)):
        try:
            run(scene, read)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"{done} of {len(scenes)} runs are finished and kept; of the "
                                    f"next, {error or NOTHING}") from error
