"""What a run writes of itself: its scene and metadata, and whether they are there already.

By them an interrupted sweep goes on where it was.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import yaml

import tem_taichi
from tem_taichi.device import current
from tem_taichi.files.io import write_json
from tem_taichi.files.manifest import METADATA, PROGRAM, is_whole
from tem_taichi.files.unfinished import key_of
from tem_taichi.files.workplace import output_folder
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.scene.show import to_yaml
from tem_taichi.scene.typed import to_plain
from tem_taichi.series.record import TiltSeries, in_field
from tem_taichi.versions import versions
from tem_taichi.waiting import waiting

_NO_MATTER = ("output", "overwrite", "force")
"""Keys that say where and whether a scene runs, not what comes out."""
_OF_FILES = ("name", "formats", "stack")
"""Keys that say what is written of the images, not what they are."""


def write_run(folder: Path, scene: Scene, series: TiltSeries) -> None:
    """Write scene.yaml and metadata.json.

    Args:
        folder: of `folder.new_folder`.
        scene: what was simulated.
        series: its result.
    """
    particles, clean = series.known("metadata", "particles", "noise_free")
    (folder / "scene.yaml").write_text(to_yaml(scene), encoding="utf-8")
    write_json(folder / METADATA, {
        "program": PROGRAM,
        "versions": versions(),
        "inputs": digests(scene),
        "seed": scene.seed,
        "warnings": doubts(scene),
        "device": current().arch,
        "dtype": scene.compute.dtype,
        "threads": {"torch": list(series.threads), **waiting()},
        "seconds": {stage: round(s, 3) for stage, s in series.seconds.items()},
        "particles": len(particles),
        "particles_in_field": int(in_field(series).sum()),
        "pixel_size_A": series.pixel_size,
        "mean_counts": mean_counts(clean),
    })


def mean_counts(stack: torch.Tensor) -> float:
    """Mean of images (n, ny, nx), one at a time."""
    return float(np.mean([image.numpy().mean(dtype=np.float64) for image in stack]))


def files_read(scene: Scene) -> list[str]:
    """Names of the files that a scene reads, whether they are there or not."""
    names = [scene.detector.mtf_file, scene.detector.dqe_file, scene.noise.style,
             scene.noise.style_angles, scene.noise.weights]
    for particle in scene.specimen.particles.values():
        names += particle.files
    return [name for name in names if name]


def digests(scene: Scene) -> dict[str, str]:
    """What a scene's files hold, by their names, as BLAKE2b in hexadecimals."""
    found = {}
    for name in files_read(scene):
        if Path(name).is_file():
            with open(name, "rb") as file:
                digest = hashlib.blake2b(digest_size=16)
                while piece := file.read(1 << 20):
                    digest.update(piece)
            found[name] = digest.hexdigest()
    return found


def key_of_images(scene: Scene) -> str:
    """Name of a scene's images, see `unfinished.key_of`: the same where they have the same bytes.

    But for the number of threads, see `sharing`.
    """
    settings = to_plain(scene)
    device = current().torch_device
    return key_of([
        {key: settings[key] for key in sorted(settings) if key not in (*_NO_MATTER, *_OF_FILES)},
        digests(scene), versions(), current().arch, torch.backends.cpu.get_cpu_capability(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else ""])


def is_finished(scene: Scene) -> bool:
    """Whether a scene's output is there: whole, of the same scene, files and program's version.

    Then running it again would give the same bytes.
    """
    try:
        folder = output_folder(scene.output)
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        before = yaml.safe_load((folder / "scene.yaml").read_text(encoding="utf-8"))
        now = yaml.safe_load(to_yaml(scene))
        return (metadata["program"] == PROGRAM
                and metadata["versions"]["tem_taichi"] == tem_taichi.__version__
                and metadata["inputs"] == digests(scene)
                and all(before.get(key) == now.get(key) for key in {*before, *now} - {*_NO_MATTER})
                and is_whole(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return False
