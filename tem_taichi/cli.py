"""The command line of the simulator."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

import tem_taichi

HELP = """\
Simulate the micrographs that a transmission electron microscope records of a specimen.

usage: python -m tem_taichi.simulate [SCENE.yaml] [KEY=VALUE ...] [options]

Without a scene, an embedded example runs: apoferritin in ice, a short tilt series.

  optics.defocus=25000      set any value of the scene
  microscope=polara         choose another microscope or detector, see --list
  -m dose=1,2,3             sweep: one output folder for each combination
  output=FOLDER             where the results go; overwrite=true replaces earlier ones

options:
  --check       read and check the scene, say what would be computed, write nothing
  --list        list the shipped microscopes, detectors and specimens
  --show        print the whole scene with every value
  --version     print the version
  --help        print this

A scene is a YAML file that begins with `defaults: [simulate, _self_]`. Lengths are in A, angles
in degrees, voltage in kV, spherical aberration in mm; positive defocus is underfocus. The output
folder holds the tilt series with and without noise (MRC), tilt angles (.rawtlt), .mdoc, the
particles (RELION star), the truth of each tilt (CSV), the whole scene, metadata and a preview.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for wrong input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    flags = {word for word in words if word.startswith("-")}
    known = {"--check", "--list", "--show", "--version", "--help", "-h", "-m", "--multirun"}
    try:
        if flags & {"--help", "-h"}:
            print(HELP, end="")
        elif "--version" in flags:
            print(f"tem_taichi {tem_taichi.__version__}")
        elif "--list" in flags:
            _list()
        elif flags - known:
            raise ValueError(f"{min(flags - known)}: no such option; see --help")
        elif flags & {"-m", "--multirun"}:
            _sweep([word for word in words if not word.startswith("-")])
        else:
            _single([word for word in words if not word.startswith("-")], flags)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """Scene file, if there is one, and overrides."""
    files = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(files) > 1:
        raise ValueError(f"{files[1]}: only one scene file; overrides are KEY=VALUE")
    if files and not files[0].endswith((".yaml", ".yml")):
        raise ValueError(f"{files[0]}: must be a scene file ending in .yaml, or KEY=VALUE")
    return (Path(files[0]) if files else None), [word for word in words if word not in files]


def _list() -> None:
    from tem_taichi.scene import CONFIG_FOLDER

    for group in ("microscope", "detector", "specimen"):
        print(f"{group}s (choose with {group}=NAME)")
        for file in sorted((CONFIG_FOLDER / group).glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            summary = re.match(r"#\s*(.*?)(?:[.:;](?:\s|$)|$)", text, re.MULTILINE)
            print(f"  {file.stem:22}{summary.group(1) if summary else ''}")


def _single(words: list[str], flags: set[str]) -> None:
    from tem_taichi.scene import load_scene, to_yaml

    path, overrides = _split(words)
    scene = load_scene(path, overrides)
    if "--show" in flags:
        print(to_yaml(scene), end="")
    elif "--check" in flags:
        _check(scene)
    else:
        run(scene)


def _check(scene: Any) -> None:
    from tem_taichi.device import init
    from tem_taichi.folder import check_new_folder
    from tem_taichi.pipeline import plan
    from tem_taichi.specimen import build_specimen

    check_new_folder(Path(scene.output), scene.overwrite)
    init(scene.compute.arch, scene.compute.dtype)
    grids = plan(scene)
    specimen = build_specimen(scene)
    copies = sum(len(pose.positions) for pose in specimen.poses)
    angles = grids.tilts["nominal_angle"]
    print(f"The scene is sound. {copies} particles of {specimen.n_scatterers:,} scatterers in "
          f"{scene.specimen.ice.thickness:g} A of ice")
    print(f"{len(angles)} images of {scene.shape[0]} x {scene.shape[1]} pixels of "
          f"{scene.pixel_size:g} A, tilts {angles.min():g} to {angles.max():g} deg, "
          f"{grids.tilts['dose'].sum():g} e-/A^2 in all")
    print(f"waves on {grids.wave_shape[0]} x {grids.wave_shape[1]} pixels of "
          f"{grids.wave_pixel:.4g} A, {scene.interaction.mode}")
    print(f"would write {scene.output}")


def run(scene: Any) -> None:
    """Simulate a scene with a progress bar and write its output folder."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from tem_taichi.device import init
    from tem_taichi.folder import check_new_folder, new_folder
    from tem_taichi.output import write_output
    from tem_taichi.pipeline import plan, simulate

    folder = Path(scene.output)
    check_new_folder(folder, scene.overwrite)
    device = init(scene.compute.arch, scene.compute.dtype)
    total = len(plan(scene).tilts)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"simulating on {device.arch}", total=total)
        series = simulate(scene, lambda done, _: bar.update(task, completed=done))
    with new_folder(folder, scene.overwrite) as place:
        files = write_output(place, scene, series)
    seconds = sum(series.seconds.values())
    print(f"{len(series.images)} images of {len(series.particles)} particles in {seconds:.1f} s ("
          + ", ".join(f"{name} {s:.1f}" for name, s in series.seconds.items()) + ")")
    print(f"mean {float(series.noise_free.mean()):.3g} counts a pixel, seed {scene.seed}")
    print(f"wrote {folder}/: " + ", ".join(files))


def _sweep(words: list[str]) -> None:
    """Every combination of the swept values, by Hydra's sweeper and launcher."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from tem_taichi.scene import DEFAULT, SEARCH_PATH, check_file, explain, to_scene

    path, overrides = _split(words)
    file = DEFAULT if path is None else path
    check_file(file)

    def job(config: DictConfig) -> None:
        scene = to_scene(config)
        settings = HydraConfig.get().job
        label = re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", settings.override_dirname)[:80]
        scene.output = str(Path(scene.output) / f"{settings.num:03d}_{label}")
        print(f"[{settings.num}] {settings.override_dirname}")
        run(scene)

    quiet = ["hydra.output_subdir=null", "hydra.sweep.dir=.", "hydra.sweep.subdir=.",
             "hydra/job_logging=none", "hydra/hydra_logging=none"]
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [before[0], "--multirun", "--config-dir", str(file.resolve().parent),
                SEARCH_PATH, *quiet, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors as exceptions, to be said in one line
    entry: Callable = hydra.main(config_path=None, config_name=file.stem, version_base="1.3")
    try:
        entry(job)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(explain(error)) from error
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
