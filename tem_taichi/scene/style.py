"""The part of the scene that gives images the looks of others; recipe=style has the same keys."""

from dataclasses import dataclass

from tem_taichi import checks


@dataclass(frozen=True)
class StyleSettings:
    """Whose looks images take in the place of a camera's noise, see tem_taichi.noise.style."""

    style: str | None = None
    """stack of a real tilt series, or one image, with pixels as wide; images take its looks"""
    style_angles: str | None = None
    """of the style: .mdoc, .rawtlt, .tlt, or a table with the column tilt_angle; null = beside it,
    by name; one image needs none"""
    features: str = "pyramid"
    """by what looks are compared: pyramid = statistics of a steerable pyramid; vgg = VGG-19, as
    published"""
    weights: str | None = None
    """of features=vgg: torchvision's file; null = where torch keeps it"""
    contrast: str = "own"
    """own = that of the clean image, relative to its mean; style = such that the deviation is the
    style's, as published, which takes the style's shades for contrast of structures"""
    steps: int = 1
    """of Adam: 1 as published; 0 = the style's white noise alone"""
    rate: float = 0.15
    """of a step, in deviations of the style"""
    keep: float = 1.0
    """weight of what the clean image shows, against the style"""
    content_noise: float = 0.25
    """part of the noise with which it is shown, 0 to 1"""
    tile: int = 1024
    """pixels a side that are made at a time; fewer take less memory"""

    def __post_init__(self) -> None:
        check_style(self, "noise.")


def check_style(settings: StyleSettings, key: str) -> None:
    """Check every value.

    Args:
        settings: of a scene or a recipe.
        key: before the settings' names.

    Raises:
        ValueError: for one that cannot be.
    """
    checks.one_of(f"{key}features", settings.features, ("pyramid", "vgg"))
    checks.one_of(f"{key}contrast", settings.contrast, ("own", "style"))
    checks.check(settings.weights is None or settings.features == "vgg", f"{key}weights",
                 settings.weights, "null unless features is vgg")
    checks.whole(f"{key}steps", settings.steps, 0, 100_000)
    checks.positive(f"{key}rate", settings.rate, "deviations")
    checks.not_negative(f"{key}keep", settings.keep, "1")
    checks.check(0 <= settings.content_noise <= 1, f"{key}content_noise", settings.content_noise,
                 "from 0 to 1")
    checks.whole(f"{key}tile", settings.tile, 256, 65_536)
