"""The command line of the simulator."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tem_taichi
from tem_taichi.command import expand_home, guarded
from tem_taichi.machine import duration, size
from tem_taichi.progress import progress

if TYPE_CHECKING:
    from tem_taichi.scene.settings import Scene
    from tem_taichi.series.plan import Plan
    from tem_taichi.specimen.particles import ParticlesInIce

COMMAND = "simulate"
"""What wrote an output, in its metadata."""

HELP = """\
Simulate the micrographs that a transmission electron microscope records of a specimen.

usage: python -m tem_taichi.simulate [SCENE.yaml] [KEY=VALUE ...] [options]

Without a scene, an embedded example runs: apoferritin in ice, a short tilt series.

  optics.defocus=25000      set any value of the scene; a list is tilts.angles=[0,30]
  microscope=polara         choose another microscope, detector or specimen, see --list
  specimen.particles.mine.structure=mine.pdb
                            add a kind of particle, here a kind called "mine"
  ~specimen.particles.apoferritin
                            take one away
  output=FOLDER             where the results go; overwrite=true replaces earlier ones
  formats=[relion5,imod]    also write folders for other programs: relion5, warp, aretomo, imod,
                            shrec, copick, tiff
  -m dose=1,2,3             sweep: one folder in the output for each combination of values, whose
                            number is also in the names of its files; the same command again goes
                            on where it was interrupted
  force=true                run even what is foreseen to take more than a day

options:
  --check       read and check everything, say what would be computed and how much memory and
                time it takes, write nothing
  --show        print the whole scene, every key with its unit and meaning
  --list        list the shipped microscopes, detectors and specimens
  --version     print the version
  --help        print this

A scene is a YAML file. It begins with its defaults, then sets what it wants to be different:

  defaults: [simulate, override microscope: polara, override specimen: empty, _self_]
  pixel_size: 1.5
  specimen:
    particles:
      mine: {structure: mine.pdb, count: 5}

Leave out "override specimen: empty" to keep the example's apoferritins. A microscope or detector
of your own is a file microscope/NAME.yaml beside the scene. File names in a scene are relative to
the scene, or else to the working folder. A value may be that of another key, as ${optics.defocus};
nothing else can stand in ${}.

Lengths are in A, angles in degrees, voltage in kV, spherical aberration in mm; positive defocus
is underfocus. The output folder holds the tilt series with and without noise (MRC), tilt angles
(.rawtlt), .mdoc, the particles (RELION star), the truth of each tilt (CSV), the whole scene,
metadata and a preview. Wrong input ends with one line and exit status 2, and writes nothing.
"""

_OPTIONS = {"--check", "--list", "--show", "--version", "--help", "-h", "-m", "--multirun"}


_NEAR = 20.0
"""What a run takes over the least it may take, at most; then it may be more than a day."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for wrong input."""
    words = [expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    return guarded(lambda: _main(words), "what was being computed is not written")


def _main(words: list[str]) -> None:
    options = {word for word in words if word.startswith("-")}
    if options - _OPTIONS:
        raise ValueError(f"{min(options - _OPTIONS)}: no such option; see --help")
    if options & {"--help", "-h"}:
        print(HELP, end="")
    elif "--version" in options:
        print(f"tem_taichi {tem_taichi.__version__}")
    elif "--list" in options:
        _list()
    else:
        _scenes([word for word in words if word not in options], options)


def _list() -> None:
    import yaml

    from tem_taichi.device import as_tensor
    from tem_taichi.noise.cameras import detector_from_config
    from tem_taichi.noise.detector import quantum_efficiency
    from tem_taichi.scene.load import CONFIG_FOLDER

    for group in ("microscope", "detector", "specimen"):
        print(f"{group}s (choose with {group}=NAME)"
              + ("; DQE at 0, half and full Nyquist" if group == "detector" else ""))
        for file in sorted((CONFIG_FOLDER / group).glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            summary = text.partition("\n")[0].lstrip("# ")
            if group == "detector":
                curve = quantum_efficiency(as_tensor([0.0, 0.25, 0.5]),
                                           detector_from_config(yaml.safe_load(text)))
                summary += "; DQE " + ", ".join(f"{value:.2f}" for value in curve.tolist())
            print(f"  {file.stem:22}{summary}")


def _scenes(words: list[str], options: set[str]) -> None:
    """Read one scene or those of a sweep, and show, check or run them."""
    from tem_taichi.scene.load import load_scene, load_sweep
    from tem_taichi.scene.show import to_yaml

    # A folder of a sweep has "=" in its name, so that the path of a scene may have it too.
    files = [word for word in words if word.endswith((".yaml", ".yml")) and
             ("=" not in word or Path(word).is_file())]
    overrides = [word for word in words if word not in files]
    odd = [*files[1:], *(word for word in overrides if "=" not in word and word[:1] != "~")]
    if odd:
        raise ValueError(f"{odd[0]}: must be one scene file ending in .yaml, then KEY=VALUE")
    path = files[0] if files else None
    read = [path] if path else []
    swept = bool(options & {"-m", "--multirun"})
    scenes = load_sweep(path, overrides) if swept else [load_scene(path, overrides)]
    if "--show" in options:
        print("---\n".join(map(to_yaml, scenes)), end="")
    elif "--check" in options:
        seconds = 0.0
        for scene in scenes:
            seconds += _describe(scene, *prepare(scene, read, may_exist=True))
            try:
                check_output(scene, read)
                print(f"would write {scene.output}")
            except ValueError as error:
                print(f"note: {error}")
        if swept:
            print(f"{len(scenes)} runs, about {duration(seconds)} in all")
    elif swept:
        _sweep(scenes, read)
    else:
        _tidy(scenes[0].output)
        run(scenes[0], read)


def _sweep(scenes: "list[Scene]", read: Sequence[str]) -> None:
    """Run all scenes whose output is not there yet."""
    from tem_taichi.export.finished import is_finished

    for scene in scenes:
        _tidy(scene.output)
    kept = [scene for scene in scenes if not scene.overwrite and is_finished(scene)]
    for scene in scenes:
        if scene not in kept:
            prepare(scene, read)  # so that nothing runs if one of them can't
    for scene in kept:
        print(f"{scene.output}: is finished and kept; overwrite=true computes it again")
    done = len(kept)
    for scene in scenes:
        if scene not in kept:
            try:
                run(scene, read)
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(
                    f"{error}; {done} of {len(scenes)} runs are finished and kept, the same "
                    "command goes on with the others") from error
            done += 1


def _tidy(output: str) -> None:
    from tem_taichi.files.folder import said_of_output
    from tem_taichi.files.workplace import clear_leftovers

    with said_of_output(output):
        clear_leftovers(output)


def check_output(scene: "Scene", read: Sequence[str] = ()) -> None:
    """Raise a ValueError if a run could not write its folder; `read` as in `prepare`."""
    from tem_taichi.files.folder import check_new_folder, said_of_output

    with said_of_output(scene.output):
        check_new_folder(scene.output, COMMAND, scene.overwrite, _inputs(scene, read))


def prepare(scene: "Scene", read: Sequence[str] = (),
            may_exist: bool = False) -> tuple["Plan", "ParticlesInIce"]:
    """What a run needs; finds whatever is wrong with a scene before the long computation.

    Args:
        scene: from `load_scene`.
        read: files that it was read from, which are never overwritten.
        may_exist: whether to let a folder pass that is there already.

    Raises:
        ValueError: with one line that names key, value and what is allowed.
    """
    from tem_taichi.device import init
    from tem_taichi.series.build import build_specimen
    from tem_taichi.series.cost import DAY, check_memory, check_time, foreseen_time, least_time
    from tem_taichi.series.plan import plan

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
    seconds = least_time(scene, grids.instrument, angles, specimen.n_scatterers)
    if DAY / _NEAR < seconds < DAY and not scene.force:
        seconds = foreseen_time(scene, grids.instrument, grids.exposures, specimen)
    check_time(scene, seconds, len(grids.exposures))
    return replace(grids, memory=memory), specimen


def _describe(scene: "Scene", grids: "Plan", specimen: "ParticlesInIce") -> float:
    """Say what would be done; returns the seconds that it would take."""
    from tem_taichi.scene.settings import doubts
    from tem_taichi.series.cost import check_time, foreseen_time

    seconds = foreseen_time(scene, grids.instrument, grids.exposures, specimen)
    check_time(scene, seconds, len(grids.exposures))
    angles, instrument = grids.tilts["nominal_angle"], grids.instrument
    kinds = ", ".join(f"{len(pose.positions)} {kind.name}"
                      for kind, pose in zip(specimen.kinds, specimen.poses, strict=True))
    found = doubts(scene)
    print(f"The scene {'can run, but see the warnings' if found else 'is sound'}. "
          f"{kinds or 'no particles'} ({specimen.n_scatterers:,} scatterers) in "
          f"{scene.specimen.ice.thickness:g} A of ice")
    print(f"{len(angles)} images of {scene.shape[0]} x {scene.shape[1]} pixels of "
          f"{scene.pixel_size:g} A, tilts {angles.min():g} to {angles.max():g} deg, "
          f"{grids.tilts['dose'].sum():g} e-/A^2 in all")
    print(f"waves on {instrument.wave_shape[0]} x {instrument.wave_shape[1]} pixels of "
          f"{instrument.wave_pixel:.4g} A, {scene.interaction.mode}; about "
          f"{size(grids.memory)} of memory, {duration(seconds)}")
    for doubt in found:
        print(f"warning: {doubt}")
    return seconds


def _inputs(scene: "Scene", read: Sequence[str]) -> list[str]:
    """Every file that a run reads."""
    from tem_taichi.export.finished import files_read

    return [*read, *files_read(scene)]


def run(scene: "Scene", read: Sequence[str] = ()) -> None:
    """Simulate a scene with a progress bar and write its output folder; as `prepare`."""
    from tem_taichi.export.output import write_output
    from tem_taichi.export.visibility import in_field
    from tem_taichi.files.folder import new_folder
    from tem_taichi.files.workplace import output_folder
    from tem_taichi.scene.settings import doubts
    from tem_taichi.series.simulate import simulate

    grids, specimen = prepare(scene, read)
    for doubt in doubts(scene):
        print(f"warning: {doubt}", file=sys.stderr)
    total, done = len(grids.tilts), 0

    def count(images: int, _: int) -> None:
        nonlocal done
        done = images
        report(done, total)

    with progress(f"simulating {scene.name}", total) as report, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"detector\.(voltage|gain)")  # said above
        try:
            series = simulate(scene, count, specimen)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("what was being computed is not written, "
                                    f"{done} of {total} images") from error
        except RuntimeError as error:  # torch's own kinds, for the CPU and for GPUs
            if "memory" not in str(error):
                raise
            raise MemoryError(f"shape={scene.shape}: needs more memory than there is; lower it, "
                              "interaction.margin or interaction.oversampling") from error
    with new_folder(scene.output, COMMAND, scene.overwrite, _inputs(scene, read)) as place:
        files = write_output(place, scene, series, specimen, output_folder(scene.output))
    kinds = series.particles["kind"].value_counts(sort=False)
    print(f"{len(series.images)} images of "
          + (", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no particles")
          + f" in {sum(series.seconds.values()):.1f} s ("
          + ", ".join(f"{name} {s:.1f}" for name, s in series.seconds.items()) + ")")
    print(f"mean {float(series.noise_free.mean()):.3g} counts a pixel, seed {scene.seed}")
    if beyond := int((~in_field(scene, series)).sum()):
        print(f"{beyond} of {len(series.particles)} particles are centred outside the field: "
              f"marked in {scene.name}_particles.star (temInField), not in other programs' lists")
    print(f"wrote {scene.output}/: " + ", ".join(files))
