"""The part of the scene that asks for a stack of boxes around the particles."""

from dataclasses import dataclass

from tem_taichi import checks


@dataclass(frozen=True)
class StackSettings:
    """Boxes around the particles of every image, see tem_taichi.export.stack."""

    box: int | None = None
    """side of a box [pixel], even; null = no stack"""
    kind: str | None = None
    """name of the particles in it; null = all"""
    invert: bool = True
    """protein is white, as RELION expects it"""
    normalise: bool = True
    """mean 0 without a slope and deviation 1 beside the particle"""

    def __post_init__(self) -> None:
        checks.check(self.box is None or (16 <= self.box <= 4096 and self.box % 2 == 0),
                     "stack.box", self.box, "an even whole number from 16 to 4096 [pixel], or null")
