"""Random numbers of a counter: known answers, a twin in numpy, and what they are statistically."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from tem_taichi.kernels.random import noise_pair, random_words

from tem_taichi.device import init
from tem_taichi.specimen.ice import ice_fields, ice_slice
from tem_taichi.streams import Key

WORD = 2**32
# Of the Random123 distribution of Salmon et al. (kat_vectors, philox4x32 10).
ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD - 1,) * 4, (WORD - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def words(values):
    return torch.from_numpy(np.array(values, dtype=np.uint32).view(np.int32))


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_known_answers(counter, key, answer):
    out = torch.zeros((1, 4), dtype=torch.int32)
    random_words(words([counter]), words(key), out)
    assert [n % WORD for n in out[0].tolist()] == list(answer)
    assert [int(n[0]) for n in philox(*(np.array([c]) for c in counter), *key)] == list(answer)


def philox(c0, c1, c2, c3, k0, k1):
    """The twin: arrays of counters."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in (c0, c1, c2, c3))
    low = np.uint64(WORD - 1)
    for n in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        first, second = ((k + n * weyl) % WORD for k, weyl in ((k0, 0x9E3779B9), (k1, 0xBB67AE85)))
        c0, c1, c2, c3 = ((b >> np.uint64(32)) ^ c1 ^ np.uint64(first), b & low,
                          (a >> np.uint64(32)) ^ c3 ^ np.uint64(second), a & low)
    return c0, c1, c2, c3


def normals(first, second):
    """The twin in double precision, with the library's logarithm, cosine and sine."""
    radius = np.sqrt(-2 * np.log((np.floor(first / 256) + 1) / 2**24))
    # An eighth of a turn below the quarter's beginning.
    angle = np.floor(second / 2**30) * np.pi / 2 + (
        (np.floor(second % 2**30 / 64) + 0.5) / 2**24 - 0.5) * np.pi / 2
    return radius * np.cos(angle) + 1j * radius * np.sin(angle)


def noise(shape, largest=1 / 3, key=(5, 7), counter=(1, 2, 3)):
    out = torch.full((*shape, 2), torch.nan)
    noise_pair(*key, *counter, torch.ones(9), largest, out)
    return torch.view_as_complex(out).numpy()


@pytest.mark.parametrize("shape", [(16, 18), (31, 45), (64, 7)])
def test_spectrum_is_that_of_the_twin(shape):
    ky, kx = (np.rint(np.fft.fftfreq(n) * n).astype(int) for n in shape)
    ky, kx = np.meshgrid(ky, kx, indexing="ij")
    place = (ky % 65536) * 65536 + (kx // 2) % 65536
    drawn = philox(place, *(np.full(shape, c) for c in (1, 2, 3)), 5, 7)
    drawn = [d.astype(float) for d in drawn]
    expected = np.where(kx % 2 == 0, normals(*drawn[:2]), normals(*drawn[2:]))
    k = np.hypot(ky / shape[0], kx / shape[1])
    found = noise(shape, 0.3)
    expected[(k > 0.3) | (k == 0)] = 0
    # Angles and logarithms of single precision.
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_normal_and_without_correlation():
    spectrum = noise((600, 600))
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(600), np.fft.fftfreq(600)))
    band = (k < 0.33) & (k > 0)
    numbers = spectrum[band]
    values = np.concatenate([numbers.real, numbers.imag])  # some 246,000
    assert kstest(values, "norm").pvalue > 1e-4
    assert abs(values.mean()) < 4 / np.sqrt(len(values))
    assert abs((values**4).mean() - 3) < 4 * np.sqrt(96 / len(values))
    assert values.max() > 4  # 1 of 31,600 is
    # Neighbours of one draw and of the next, real and imaginary parts, k and -k.
    here = spectrum[1:100, 1:100]
    pairs = [(here.real, here.imag)]
    for other in (spectrum[1:100, 2:101], spectrum[2:101, 1:100],
                  spectrum[-1:-100:-1, -1:-100:-1]):
        pairs += [(here.real, other.real), (here.real, other.imag), (here.imag, other.imag)]
    for one, other in pairs:
        assert abs((one * other).mean()) < 4 / np.sqrt(one.size)


@pytest.mark.parametrize("changed", range(5))
def test_every_word_gives_other_numbers(changed):
    names = [5, 7, 1, 2, 3]
    names[changed] += 1
    one, other = noise((128, 128)), noise((128, 128), key=names[:2], counter=names[2:])
    n = np.count_nonzero(one)
    correlation = abs((one * other.conj()).sum()) / (2 * n)
    assert correlation < 4 / np.sqrt(n)


def test_words_of_streams_do_not_meet():
    keys = [Key(seed, name, number) for seed in (0, 1, 2**40) for number in (0, 1, 2**32 - 1)
            for name in ("ice", "noise", "motion", "trials")]
    given = {key.words(part, kind) for key in keys for part in (-1, 0, 1) for kind in (0, 1)}
    assert len(given) == 6 * len(keys)
    assert all(0 <= word < WORD for one in given for word in one)
    assert Key(2**40 + 3, "ice", 5).words(-2, 1) == (3, 256, WORD - 2, 5, 8 + 256)
    with pytest.raises(ValueError, match="part=2147483648"):
        Key(0, "ice").words(2**31)


def test_numbers_are_the_same_in_both_precisions():
    fine = noise((96, 80))
    init("cpu", "float64")
    out = torch.empty((96, 80, 2), dtype=torch.float64)
    noise_pair(5, 7, 1, 2, 3, torch.ones(9, dtype=torch.float64), 1 / 3, out)
    np.testing.assert_allclose(torch.view_as_complex(out).numpy(), fine, rtol=1e-6)
    init("cpu", "float32")
    assert np.array_equal(noise((96, 80)), fine)


def test_finer_pixels_add_detail_to_the_same_ice():
    """And another shape of the grid takes nothing away: a coefficient goes by its periods."""
    coarse = ice_slice((60, 50), 2.0, 20.0, 1, 0, -3).double()
    fine = ice_slice((120, 100), 1.0, 20.0, 1, 0, -3).double()
    there, here = (torch.fft.fft2(image, norm="forward") for image in (fine, coarse))
    seen = here.abs() > 1e-4 * here.abs().max()
    rows, columns = (torch.fft.fftfreq(n, 1 / n).round().long() for n in (60, 50))
    there = there[rows][:, columns]
    assert int(seen.sum()) > 900
    # Tables of the spectrum are interpolated in steps of each grid, to 1e-4.
    torch.testing.assert_close(there[seen], here[seen], rtol=1e-3, atol=1e-6)


def test_pairs_of_slices_are_what_each_is_alone():
    alone = [ice_slice((32, 32), 1.0, 1.0, 1, 0, n) for n in (-3, -2, -1, 4)]
    together = ice_fields((32, 32), 1.0, [-3, -2, -1, 4], 1, 0)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
