"""How near each stage of the realistic path comes to its transforms: time a slice, over bare FFTs.

The README's series: apoferritin in thick granular ice, tilted. One process, taking turns, CPU time,
so that other programs on the machine disturb little; medians.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

import tem_taichi  # noqa: F401  before torch, whose threads and memory it sets
from tem_taichi.device import init
from tem_taichi.instrument.groups import group_size
from tem_taichi.scene.load import load_scene
from tem_taichi.series.build import build_specimen
from tem_taichi.series.plan import plan
from tem_taichi.specimen import grains, slicing

SCENE = ["microscope=talos_arctica", "detector=k3_200kv", "specimen=empty", "pixel_size=1.7",
         "dose=3.0", "optics.defocus=30000", "tilts.scheme=listed", "specimen.ice.thickness=1500",
         "+specimen.particles.ferritin.structure=4v1w", "compute.arch=cpu"]
STAGES = {"particles": (slicing, "_splatted"), "narrowing": (slicing, "narrow"),
          "where ice is": (grains, "fills"), "grains": (grains, "ice_fields")}


class Clock:
    """Seconds of CPU time by name, of one pass."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def timed(self, name: str, work: Callable) -> Callable:
        """A function that counts; one that yields counts what it takes to its next value."""
        def call(*args: Any, **named: Any) -> Any:
            begun = time.process_time()
            result = work(*args, **named)
            self.spent[name] += time.process_time() - begun
            return self.each(name, result) if isinstance(result, Iterator) else result
        return call

    def each(self, name: str, values: Iterator) -> Iterator:
        """The same values, counted one by one."""
        while True:
            begun = time.process_time()
            value = next(values, None)
            self.spent[name] += time.process_time() - begun
            if value is None:
                return
            yield value


def transforms(shape: tuple[int, int]) -> Callable[[], object]:
    """Two complex and two real transforms."""
    wave, image = torch.ones(shape, dtype=torch.complex64), torch.ones(shape)

    def work() -> None:
        torch.fft.ifft2(torch.fft.fft2(wave))
        torch.fft.irfft2(torch.fft.rfft2(image), s=shape)

    return work


def measure(words: list[str], repeats: int) -> dict[str, Any]:
    """Medians of the stages of a group of slices in the middle, a slice; of an image, whole."""
    scene = load_scene(None, [*SCENE, *words])
    init(scene.compute.arch, scene.compute.dtype)
    planned, specimen = plan(scene), build_specimen(scene)
    tem, exposure, clock = planned.instrument, planned.exposures[0], Clock()
    view = tem.view(specimen, exposure)
    count = group_size(view.n_slices, math.prod(view.shape))
    groups = max(1, view.n_slices // count)
    for name, (module, function) in STAGES.items():
        setattr(module, function, clock.timed(name, getattr(module, function)))
    wave = torch.ones(view.shape, dtype=torch.complex64)
    bare = clock.timed("bare transforms", transforms(view.shape))
    rows = defaultdict(list)
    with torch.no_grad():
        for n in range(repeats + 1):
            clock.spent.clear()
            first = (groups // 2 + n % 2) % groups * count
            here = min(count, view.n_slices - first)
            slices = clock.timed("slices, all", specimen.slices)(view, first, here)
            clock.timed("interaction", tem.passed)(slices, view, wave)
            for _ in range(here):
                bare()
            del slices
            image = clock.timed("image", tem.image)(specimen, exposure, wave, 0.0)
            clock.timed("expected counts", planned.camera.expected)(image, exposure.dose)
            for name, seconds in clock.spent.items() if n else ():  # the first pass compiles
                whole = name in ("image", "expected counts")
                rows[name].append(seconds / (1 if whole else here))
    found = {name: median(values) for name, values in rows.items()}
    floor = found["bare transforms"]
    whole = (found["slices, all"] + found["interaction"]) / floor
    return {"pixels": list(view.shape), "slices": view.n_slices, "thickness": view.slice_thickness,
            "ms": {name: 1e3 * seconds for name, seconds in found.items()},
            "over bare transforms": {name: s / floor for name, s in found.items()} | {
                "a slice, all": whole}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="of the scene, as shape=[512,512]")
    parser.add_argument("--tilts", type=float, nargs="*", default=[0.0, 45.0])
    parser.add_argument("--size", type=int, default=1024, help="pixels of the images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    copies = max(1, round(60 * (options.size / 1024) ** 2))
    results = []
    for tilt in options.tilts:
        words = [f"shape=[{options.size},{options.size}]", f"tilts.angles=[{tilt}]",
                 f"specimen.particles.ferritin.count={copies}", *options.words]
        found = measure(words, options.repeats)
        results.append(found | {"tilt": tilt})
        print(f"{tilt:g} degrees, waves of {found['pixels']}, {found['slices']} slices of "
              f"{found['thickness']:g} A")
        for name, ratio in found["over bare transforms"].items():
            print(f"  {name:16s} {ratio * found['ms']['bare transforms']:9.1f} ms {ratio:7.2f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
