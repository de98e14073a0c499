"""What textures look like to VGG-19, a network that was trained on photographs.

Of Gatys et al. 2016 (CVPR) with the layers and weights of FakET (Harar et al. 2023). Its numbers
are torchvision's file, which is not shipped: 550 MB, for whose use its own licence holds.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from tem_taichi.device import current

NAME = "vgg19-dcbb9e9d.pth"
"""torchvision's file, of https://download.pytorch.org/models/."""
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)
_POOLS = (4, 9, 18, 27)
STYLES = (1, 6, 11, 20, 29)
"""Layers after whose ReLU products of features are taken."""
CONTENT = 8
"""That whose features are the content."""


@dataclass(frozen=True, eq=False)
class VGG:
    """Features for `style.transfer`; made by `read_vgg`."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(repr=False)
    """Kernels and offsets of the convolutions, by their numbers."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the statistics, as published."""
        return (256.0, 64.0, 16.0, 4.0, 1.0)

    def __call__(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What an image shows, and what it looks like.

        Args:
            image: (ny, nx), in units of the style's deviation, about 0, as the network had the
                colours of photographs.

        Returns:
            Features of the layer `CONTENT`, and products of those of each of `STYLES`.
        """
        values = image.expand(1, 3, -1, -1)
        content, products = image, []
        for number in range(STYLES[-1] + 1):
            if number in self.layers:
                values = relu(conv2d(values, *self.layers[number], padding=1))
            elif number in _POOLS:
                values = max_pool2d(values, 2)
            if number == CONTENT:
                content = values
            if number in STYLES:
                flat = values.flatten(2)[0]
                products.append(flat @ flat.T / flat.shape[1])
        return content, products


def read_vgg(file: str | Path | None = None) -> VGG:
    """The network, from torchvision's file of weights.

    Args:
        file: its path; None = where torch keeps it, if it does.

    Raises:
        ValueError: if there is none, or it is another network's.
    """
    path = Path(file) if file is not None else Path(torch.hub.get_dir()) / "checkpoints" / NAME
    if not path.is_file():
        raise ValueError(f"weights={'null' if file is None else file}: must be torchvision's file "
                         f"of VGG-19, {NAME}; there is none at {path}")
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
        layers = {number: (read[f"features.{number}.weight"], read[f"features.{number}.bias"])
                  for number in _CONVOLUTIONS}
    except (KeyError, RuntimeError, EOFError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"weights={os.fspath(path)}: must be torchvision's file of VGG-19 "
                         f"({type(error).__name__})") from error
    kind = {"device": current().torch_device, "dtype": current().dtype}
    return VGG({number: (kernel.to(**kind), offset.to(**kind))
                for number, (kernel, offset) in layers.items()})
