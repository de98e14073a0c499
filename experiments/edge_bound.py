"""Least error of TMV's MTF that the images of a slanted edge allow, parametric form.

    python -m experiments.edge_bound

Cramer-Rao deviation at the worst frequency for 10 images of 256^2: exact
covariance of the noise, brightness and place of the edge unknown, the fit's own prior included.
"""

import argparse
from itertools import product

import numpy as np
from scipy import fft

from experiments.detector_bench import slanted_edge, tmv, tmv_slopes
from tem_taichi.device import init
from tem_taichi.estimate.edge_pixels import EdgePixels
from tem_taichi.estimate.noise_curves import EXPECTED
from tem_taichi.noise.curves import numbers, radial_frequency

SIDE, ANGLE, OFFSET, IMAGES, DQE = 256, 5.0, 3.3, 10, 0.4
FREQUENCIES = np.arange(2, 129) / 256


def information(dark, kind):
    """Fisher's of place, brightness and the four numbers, for 1 e-/pixel in all images."""
    scene = slanted_edge(SIDE, ANGLE, OFFSET, dark)
    mtf = tmv(numbers(radial_frequency(SIDE, SIDE)))
    normal = np.array([np.cos(np.radians(ANGLE)), np.sin(np.radians(ANGLE))])
    pixels = EdgePixels(scene, normal, OFFSET, 0.5 / normal[0], 40.0)
    pixels.place[2:4], pixels.mtf = (dark, 1), tmv(pixels.knots)
    columns = pixels.model()[1]
    columns = np.hstack([columns[:, :6], columns[:, 6:] @ tmv_slopes(pixels.knots[1:])]).T

    def blur(image, transfer):
        return fft.irfft2(fft.rfft2(image) * transfer, s=scene.shape)

    def spread(column):
        image = np.zeros(scene.shape)
        image[pixels.used] = column
        return image

    if kind == "counting":
        return columns / blur(scene, mtf)[pixels.used] @ columns.T * DQE

    def covariance(column):
        return blur(scene * blur(spread(column), mtf), mtf)[pixels.used]

    def nearly_inverse(column):
        return blur(blur(spread(column), 1 / mtf) / scene, 1 / mtf)[pixels.used]

    solved = [conjugate_gradients(covariance, nearly_inverse, own) for own in columns]
    return np.array(solved) @ columns.T * DQE


def conjugate_gradients(matrix, nearly_inverse, right, tolerance=1e-10):
    """Solve a symmetric positive system."""
    found, left = np.zeros_like(right), right.copy()
    step = turned = nearly_inverse(left)
    size = first = left @ turned
    while size > tolerance * first:
        image = matrix(step)
        length = size / (step @ image)
        found, left = found + length * step, left - length * image
        turned = nearly_inverse(left)
        size, before = left @ turned, size
        step = turned + size / before * step
    return found


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    init("cpu", "float64")
    prior = np.diag(np.append(np.zeros(6), [error**-2.0 for _, error in EXPECTED]))
    at = tmv_slopes(FREQUENCIES)
    print("| camera, dark side | 22 e-/pixel | 100 | 400 |\n|" + 4 * " --- |")
    for kind, dark in product(("integrating", "counting"), (0.2, 0.1)):
        one = information(dark, kind)
        cells = []
        for dose in (22, 100, 400):
            variance = np.linalg.inv(one * dose * IMAGES + prior)[6:, 6:]
            cells.append(np.sqrt(np.einsum("ki,ij,kj->k", at, variance, at)).max())
        print(f"| {kind}, {dark:g} | " + " | ".join(f"{own:.4f}" for own in cells) + " |")


if __name__ == "__main__":
    main()
