"""The scenes of one command: one, or those of a sweep, to be shown, checked or run."""

from pathlib import Path

from tem_taichi.scene.launcher import launcher_of
from tem_taichi.scene.load import load_scene, load_sweep
from tem_taichi.scene.show import to_yaml


def do_scenes(words: list[str], options: set[str]) -> None:
    """Read one scene or those of a sweep, and show, check or run them.

    Args:
        words: at most one scene file, and overrides.
        options: --show or --check, -m or --multirun for a sweep.
    """
    # A folder of a sweep has "=" in its name, so that the path of a scene may have it too.
    files = [word for word in words if word.endswith((".yaml", ".yml")) and
             ("=" not in word or Path(word).is_file())]
    launcher, overrides = launcher_of([word for word in words if word not in files])
    odd = [*files[1:], *(word for word in overrides if "=" not in word and word[:1] != "~")]
    if odd:
        raise ValueError(f"{odd[0]}: must be one scene file ending in .yaml, then KEY=VALUE")
    path = files[0] if files else None
    swept = bool(options & {"-m", "--multirun"})
    if launcher.name != "basic" and not swept:
        raise ValueError(f"hydra/launcher={launcher.name}: is for a sweep; add -m")
    scenes = load_sweep(path, overrides) if swept else [load_scene(path, overrides)]
    if "--show" in options:
        print("---\n".join(map(to_yaml, scenes)), end="")
    elif "--check" in options:
        from tem_taichi.cli.check import check  # what computes takes seconds to import

        check(scenes, files, swept)
    elif swept and launcher.name != "basic":
        from tem_taichi.cli.launch import launch_sweep

        launch_sweep(launcher, scenes, files)
    elif swept:
        from tem_taichi.cli.run import sweep

        sweep(scenes, files)
    else:
        from tem_taichi.cli.run import run

        run(scenes[0], files)
