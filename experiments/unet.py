"""A small 3-D U-Net (MONAI) that names each voxel's kind of particle, and its peaks as picks."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.feature import peak_local_max

from experiments.picker_scores import Picks, Truth

CHANNELS = (16, 32, 64)
PATCH, BATCH = 48, 4
RATE = 2e-3
"""Greatest rate of learning; it falls to nothing by the cosine."""
CORE = 3.5
"""Radius of the ball that stands for a particle, or half its own where that is more [voxel]."""
SMOOTH = 1.5
"""Deviation of the Gaussian by which probabilities are smoothed [voxel]."""


def network(kinds: int) -> torch.nn.Module:
    """The network: volumes (b, 1, z, y, x) to scores of background and kinds."""
    from monai.networks.nets import UNet

    return UNet(spatial_dims=3, in_channels=1, out_channels=kinds + 1, channels=CHANNELS,
                strides=(2, 2), num_res_units=2, norm="batch")


def normal(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of mean 0 and deviation 1."""
    return ((volume - volume.mean(dtype=np.float64)) / volume.std(dtype=np.float64)).astype(
        np.float32)


def cores(truth: Truth) -> NDArray[np.uint8]:
    """Kinds in balls about the particles' places, 0 elsewhere."""
    shape = truth.instances.shape
    labels = np.zeros(shape, np.uint8)
    for place, kind in zip(truth.places, truth.kinds, strict=True):
        radius = max(CORE, truth.radius[kind] / 2)
        low = np.maximum(np.floor(place - radius).astype(int), 0)
        high = np.minimum(np.ceil(place + radius).astype(int) + 1, shape)
        axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        near = sum((axis - at) ** 2 for axis, at in zip(axes, place, strict=True)) <= radius**2
        labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][near] = kind
    return labels


def train(volumes: Sequence[NDArray[np.float32]], truths: Sequence[Truth], steps: int,
          seed: int = 0, patch: int = PATCH) -> tuple[torch.nn.Module, list[float], float]:
    """Teach a network from patches, half of them about particles, turned by 180 degrees.

    Turns about x, y and z leave the missing wedge and the hand of the particles as they are.

    Returns:
        The network, the loss of each step, and CPU seconds.
    """
    from monai.losses import DiceCELoss

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    begun = time.process_time()
    inputs = [torch.as_tensor(normal(one)) for one in volumes]
    labels = [torch.as_tensor(cores(one)) for one in truths]
    model = network(len(truths[0].radius) - 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    losses = []
    for _ in range(steps):
        parts = [_patch(inputs[n], labels[n], truths[n], patch, rng)
                 for n in rng.integers(len(inputs), size=BATCH)]
        images, wanted = (torch.stack(one)[:, None] for one in zip(*parts, strict=True))
        loss = loss_of(model(images), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
        losses.append(loss.item())
    return model.eval(), losses, time.process_time() - begun


def _patch(volume: torch.Tensor, labels: torch.Tensor, truth: Truth, size: int,
           rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    top = np.array(volume.shape) - size
    if len(truth.places) and rng.random() < 0.5:
        middle = truth.places[rng.integers(len(truth.places))] + rng.uniform(-8, 8, 3)
        low = np.clip((middle - size / 2).astype(int), 0, top)
    else:
        low = rng.integers(0, top + 1)
    where = tuple(slice(a, a + size) for a in low)
    turn = [[], [0, 1], [0, 2], [1, 2]][rng.integers(4)]
    return volume[where].flip(turn), labels[where].flip(turn)


def probabilities(model: torch.nn.Module, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of background and kinds, (kinds + 1, z, y, x)."""
    with torch.no_grad():
        scores = model(torch.as_tensor(normal(volume))[None, None])
    return torch.softmax(scores[0], dim=0).numpy()


def peaks(probability: NDArray[np.float32], least: float) -> Picks:
    """Maxima of the smoothed probability of any kind, named by the likeliest."""
    smooth = np.stack([gaussian_filter(one, SMOOTH) for one in probability[1:]])
    any_kind = smooth.sum(axis=0)
    places = peak_local_max(any_kind, min_distance=int(CORE), threshold_abs=least,
                            exclude_border=False)
    at = tuple(places.T)
    kinds = smooth[(slice(None), *at)].argmax(axis=0) + 1 if len(places) else np.zeros(0, np.int64)
    return Picks(places.astype(np.float64), kinds, any_kind[at])
