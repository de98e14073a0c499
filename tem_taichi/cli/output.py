"""The output folder of a simulation: the series' files, and the run's own."""

from dataclasses import asdict
from pathlib import Path

from tem_taichi.export.output import write_output
from tem_taichi.export.stack import write_stack
from tem_taichi.scene.settings import Scene
from tem_taichi.series.finished import write_run
from tem_taichi.series.record import TiltSeries


def write_result(folder: Path, scene: Scene, series: TiltSeries,
                 final: Path | None = None) -> list[str]:
    """Write all that a run gives into an empty folder.

    Args:
        folder: of `folder.new_folder`.
        scene: what was simulated.
        series: its result.
        final: where the folder will be, if it is not to stay where it is.

    Returns:
        Names of the files, and of the folders of `scene.formats`.
    """
    write_output(folder, series, scene.formats, final)
    write_stack(folder, series, **asdict(scene.stack))
    write_run(folder, scene, series)
    return sorted(file.name for file in folder.iterdir())
