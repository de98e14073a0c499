import json

import mrcfile
import numpy as np
import pytest
import torch

from tem_taichi.dataset import main as dataset
from tem_taichi.device import as_tensor
from tem_taichi.estimate.styled import spectral_distance, spectrum
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.noise.looks import Looks
from tem_taichi.noise.pyramid import Pyramid
from tem_taichi.noise.style import Style, distance, transfer
from tem_taichi.noise.vgg import NAME, read_vgg
from tem_taichi.simulate import main as simulate
from tem_taichi.streams import Key


def noise(shape, seed=0, slope=0.0):
    """Standard normal, of power k^-slope."""
    ky, kx = (torch.fft.fftfreq(n) for n in shape)
    k = (ky[:, None]**2 + kx**2).sqrt().clamp(min=0.5 / max(shape))
    white = torch.tensor(np.random.default_rng(seed).standard_normal(shape))
    image = torch.fft.ifft2(torch.fft.fft2(white) * k**(-slope / 2)).real
    return as_tensor((image - image.mean()) / image.std())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torchvision's, of a network with few features."""
    file = tmp_path_factory.mktemp("vgg") / "small.pth"
    draw, state, before = torch.Generator().manual_seed(0), {}, 3
    for number, count in zip((0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28),
                             (4, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8), strict=True):
        state[f"features.{number}.weight"] = torch.randn(count, before, 3, 3, generator=draw) / 3
        state[f"features.{number}.bias"] = torch.zeros(count)
        before = count
    torch.save(state, file)
    return file


@pytest.mark.parametrize("shape", [(96, 128), (75, 101)])
def test_bands_hold_all_power_but_the_widest(shape):
    image = noise(shape)
    products = [one for one in Pyramid(directions=3)(image)[1][1:] if one.ndim == 2]
    # Of each scale, then with the next: every other from the third on.
    within = [products[0], *products[1::2]]
    held = float(sum(one.diagonal().sum() for one in within))
    waves = torch.fft.fft2(image).abs().square() / image.numel()**2
    ky, kx = (torch.fft.fftfreq(n) for n in shape)
    wide = (ky[:, None]**2 + kx**2).sqrt() < 0.25 / 2 ** (len(within) - 1)
    # Above the widest band's own middle all is held; what is opposite to -0.5 is not there.
    assert float(waves[~wide].sum()) * 0.97 < held < float(waves.sum()) * 1.0001


def test_directions_are_told_apart():
    y, x = np.mgrid[:64, :64]
    for angle in (0, 45, 90, 135):
        way = np.deg2rad(angle)
        wave = np.cos(2 * np.pi * 0.25 * (np.cos(way) * x + np.sin(way) * y))
        power = Pyramid()(as_tensor(wave))[1][1].diagonal()
        assert int(power.argmax()) == angle // 45


def test_statistics_do_not_depend_on_the_size():
    pyramid = Pyramid(scales=3)
    one, other = (pyramid(noise(shape, 3, 1.0))[1] for shape in ((256, 256), (180, 301)))
    assert float(distance(one, other, (1.0,))) < 0.01  # 3 % of 50,000 pixels' samples of waves
    assert float(distance(one, pyramid(noise((256, 256), 3))[1], (1.0,))) > 0.05


@pytest.mark.parametrize("kind", ["pyramid", "vgg"])
def test_gradient_is_that_of_differences(kind, weights):
    features = Pyramid(scales=3) if kind == "pyramid" else read_vgg(weights)
    if kind == "vgg":
        features = type(features)({number: (kernel.double(), offset.double())
                                   for number, (kernel, offset) in features.layers.items()})
    style = [one.double() for one in features(noise((32, 32), 1, 1.0).double())[1]]
    image = noise((32, 32), 2).double().requires_grad_()
    way = noise((32, 32), 4).double()

    def loss(at):
        shown, statistics = features(at)
        return distance(statistics, style, features.weights).double() + shown.square().mean()

    slope, = torch.autograd.grad(loss(image), image)
    h = 1e-5
    with torch.no_grad():
        by = float(loss(image + h * way) - loss(image - h * way)) / (2 * h)
    assert float((slope * way).sum()) == pytest.approx(by, rel=1e-4)


def test_one_step_is_the_published_one():
    """The mean of before and after a step of 0.15, 1 and 0.99 parts: 0.0754 times the sign."""
    start, style = noise((64, 64)), Pyramid()(noise((64, 64), 5, 1.0))[1]
    moved = start - transfer(start, start, style, Pyramid())
    assert float(moved.abs().median()) == pytest.approx(0.0754, abs=1e-4)


def test_steps_lessen_the_distance_and_keep_the_content():
    style = noise((128, 128), 5, 1.0)
    blob = torch.zeros(128, 128)
    blob[50:70, 40:80] = 1
    start = noise((128, 128), 1) + blob
    pyramid = Pyramid()
    wanted, losses = pyramid(style)[1], []
    made = transfer(start, start, wanted, pyramid, 15, 0.05, report=losses.append)
    assert len(losses) == 15 and losses[-1] < losses[0] / 2
    assert float(distance(pyramid(made)[1], wanted, (1.0,))) < 0.5 * float(
        distance(pyramid(start)[1], wanted, (1.0,)))
    assert float(made[52:68, 42:78].mean() - made[80:].mean()) > 0.7


def test_law_of_a_picture():
    style = 40 + 5 * noise((96, 120), 5, 0.7)
    clean = 1 + 0.02 * noise((96, 96), 2, 2.0)
    key = Key(1, "noise", 3)
    law = Style(style, 40.0, 5.0, 4.0, steps=1)
    # As much contrast as the input has, on the style's mean.
    torch.testing.assert_close(law.expected(clean), 40 * clean / clean.mean())
    made = law.sample(clean, 1.0, key)
    assert torch.equal(made, law.sample(clean, 1.0, key))
    assert not torch.equal(made, law.sample(clean, 1.0, Key(2, "noise", 3)))
    assert float(made.mean()) == pytest.approx(40, rel=1e-5)
    published = Style(style, 40.0, 5.0, 4.0, scaled=True)
    assert float(published.expected(clean).std(correction=0)) == pytest.approx(3, rel=1e-4)
    assert float(published.sample(clean, 1.0, key).std(correction=0)) == pytest.approx(5, rel=1e-4)
    white = Style(style, 40.0, 5.0, 4.0, steps=0)
    residual = white.sample(clean, 1.0, key) - white.expected(clean)
    assert float(residual.std()) == pytest.approx(4, rel=0.03)  # 9,216 pixels: 0.7 %
    assert spectral_distance(made, style) < spectral_distance(white.sample(clean, 1.0, key), style)


def test_tiles_meet():
    style, clean = noise((300, 300), 5, 1.0), 10 + 0.1 * noise((300, 280), 2, 1.0)
    made = Style(style, 40.0, 5.0, 4.0, tile=256).sample(clean, 1.0, Key(0, "noise"))
    assert made.shape == (300, 280) and bool(made.isfinite().all())
    # Three tiles of 100 rows each: neighbours are as alike across their edges as within.
    steps = made.diff(dim=0).square().mean(1).sqrt()
    within = steps[[n for n in range(299) if n not in (99, 199)]].mean()
    for edge in (99, 199):
        assert float(steps[edge] / within) == pytest.approx(1, abs=4 / (2 * 280)**0.5)


@pytest.mark.parametrize("wrong", [dict(noise=5.0), dict(deviation=0.0), dict(rate=0.0),
                                   dict(content_noise=2.0), dict(steps=-1), dict(tile=100)])
def test_wrong_laws(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Style(**{"image": noise((32, 32)), "mean": 40.0, "deviation": 5.0, "noise": 4.0} | wrong)


def test_looks_are_parabolas_over_the_tilt():
    tilts = np.arange(-60, 61, 20.0)
    images = torch.stack([40 - tilt**2 / 200 + (5 - tilt**2 / 2000) * noise((64, 64), n)
                          for n, tilt in enumerate(tilts)])
    looks = Looks(images, tilts)
    for tilt in (-30.0, 0.0, 50.0):
        law = looks.law(tilt, Style(images[0], 0.0, 1.0, 0.0))
        assert law.mean == pytest.approx(40 - tilt**2 / 200, abs=1e-3)
        assert law.deviation == pytest.approx(5 - tilt**2 / 2000, rel=1e-3)
        assert 0.95 * law.deviation < law.noise <= 0.98 * law.deviation
    assert looks.law(80.0, law).mean == looks.law(60.0, law).mean
    k, power = spectrum(images[0])
    assert float(k[-1]) <= 0.5 and float(power[-8:].mean()) == pytest.approx(10.2, rel=0.1)


def series(folder, name, tilts, seed, size=80):
    images = torch.stack([30 + 4 * noise((size, size), seed + n, 0.5)
                          for n in range(len(tilts))]).numpy().astype(np.float32)
    write_mrc(folder / f"{name}.mrc", images, 10.0)
    (folder / f"{name}.rawtlt").write_text("".join(f"{tilt}\n" for tilt in tilts))


def test_recipe(tmp_path, capsys):
    series(tmp_path, "clean", [-40, 0, 40], 1)
    series(tmp_path, "real", [-60, -30, 0, 30, 60], 20, 96)
    words = ["recipe=style", f"input={tmp_path}/clean.mrc", f"style={tmp_path}/real.mrc",
             f"output={tmp_path}/out"]
    assert main(words) == 0
    out = tmp_path / "out"
    made = mrcfile.read(out / "styled.mrc")
    assert made.shape == (3, 80, 80) and made.mean() == pytest.approx(30, rel=0.01)
    assert (out / "styled.txt").read_text().split() == ["-40.00", "0.00", "40.00"]
    found = json.loads((out / "results.json").read_text())
    assert found["images"] == 3 and found["distance"] < found["distance_of_white_noise"]
    first = (out / "styled.mrc").read_bytes()
    assert main([*words, "overwrite=true"]) == 0 and (out / "styled.mrc").read_bytes() == first
    capsys.readouterr()
    for wrong, says in ((["style="], "style="), (["features=vgg", "weights=no.pth"], "weights"),
                        (["style=none.mrc"], 'style="none.mrc"'), (["contrast=high"], "contrast"),
                        ([f"style_angles={tmp_path}/clean.rawtlt"], "angles=")):
        assert main([*words, *wrong, "overwrite=true"]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error


def test_weights_are_torchvisions_or_a_line_says_so(tmp_path, monkeypatch, weights):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=NAME):
        read_vgg()
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="must be torchvision's"):
        read_vgg(other)
    content, products = read_vgg(weights)(noise((64, 64)))
    assert content.shape == (1, 6, 32, 32) and [len(one) for one in products] == [4, 6, 8, 8, 8]


def test_scenes_and_data_sets_take_a_style(tmp_path, capsys):
    """In the place of a camera, at each tilt; a sample is made again from its number."""
    series(tmp_path, "real", [-20, 0, 20], 20, 64)
    (tmp_path / "scene.yaml").write_text(
        "defaults: [simulate, override specimen: empty, _self_]\nshape: [48, 56]\npixel_size: 10\n"
        "specimen: {ice: {thickness: 100}, particles: {ball: {globule: 200, count: 2}}}\n"
        "tilts: {scheme: linear, minimum: -20, maximum: 20, step: 20}\nnoise: {style: real.mrc}\n")
    words = [f"scene={tmp_path}/scene.yaml", "samples=2", "formats=[]", "workers=1"]
    for name, more in (("set", []), ("alone", ["only=[1]"])):
        assert dataset([*words, f"output={tmp_path}/{name}", "name=s", *more]) == 0
    parts = [tmp_path / name / "samples" / "s_0001" for name in ("set", "alone")]
    one, other = ((part / "s_0001.mrc").read_bytes() for part in parts)
    assert one == other
    images, clean = (mrcfile.read(parts[0] / f"s_0001{end}.mrc") for end in ("", "_noise_free"))
    noise_left = images - clean
    assert np.allclose(clean.mean((1, 2)), 30, atol=0.2)  # the style's, not 300 electrons
    assert np.all(noise_left.std((1, 2)) < 4.5) and np.all(noise_left.std((1, 2)) > 1)
    capsys.readouterr()
    for wrong, says in (("movie.frames=2", "movie.frames"), ("detector.halves=true",
                        "detector.halves"), ("noise.rate=0", "noise.rate"), ("pixel_size=9",
                        "noise.style=real.mrc: has pixels of 10 A")):
        assert simulate([f"{tmp_path}/scene.yaml", wrong, f"output={tmp_path}/x"]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
