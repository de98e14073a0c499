"""MTF of other cameras than TMV's from slanted edges: greatest errors and coverage.

    python -m experiments.edge_cameras FOLDER

FOLDER holds RELION's MTF files. Ten images of 256^2 an edge, 0.1 to 1, slanted by 5 degrees.
"""

import argparse
from pathlib import Path

import numpy as np

from experiments.detector_bench import score, slanted_edge
from tem_taichi.device import as_tensor, init
from tem_taichi.estimate.edge_fit import estimate_mtf_from_edge
from tem_taichi.noise.curves import numbers, read_mtf
from tem_taichi.noise.detector import Detector, detect

CAMERAS = ("falcon4EC_300kV", "falcon3EC_300kV", "de20_300kV", "k2_300kV_FL2",
           "k3_standard_300kV_FL2", "falcon2_300kV")
DOSES, SEEDS = (22.0, 100.0, 400.0), 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    init("cpu", "float32")
    scene = as_tensor(np.repeat(slanted_edge(256, 5.0, 3.3, 0.1)[None], 10, 0))
    print("| camera | form | 22 e-/pixel: error, coverage | 100 | 400 |\n|" + 5 * " --- |")
    for kind in ("integrating", "counting"):
        for name in CAMERAS:
            curve = read_mtf(folder / f"mtf_{name}.star")
            camera = Detector(kind, gain=10.0, mtf=curve, dqe=0.4)
            images = {(dose, seed): numbers(detect(scene, pixel_size=1.0, dose=dose, seed=seed,
                                                   detector=camera))
                      for dose in DOSES for seed in range(SEEDS)}
            for form in ("parametric", "free"):
                cells = []
                for dose in DOSES:
                    fits = [estimate_mtf_from_edge(images[dose, seed], form=form,
                                                   highest=0.5 / np.cos(np.radians(5.0)))
                            for seed in range(SEEDS)]
                    errors, inside = np.transpose([score(fit.mtf, curve, 256) for fit in fits])
                    doubted = sum(bool(fit.warnings) for fit in fits)
                    cells.append(f"{errors.max():.3f}, {inside.mean():.2f}"
                                 + (f" ({doubted} doubted)" if doubted else ""))
                print(f"| {name}, {kind} | {form} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
