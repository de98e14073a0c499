"""Counts that a detector draws, one thread a pixel, from random numbers of a counter.

In double precision whatever the arrays' is. A draw is exact but for the 2^-53 of a uniform number,
and what one is depends on its key, pixel and mean alone.
"""

import taichi as ti
from tem_taichi.kernels.random import philox

FEW = 10.0
"""Means below it are inverted, those above take a rejection, which needs about one try."""

TRIES = 1000
"""More than half of them succeed: that so many fail happens never."""


@ti.func
def _uniform(high, low):
    """Number in (0, 1) of 53 bits, from two words; in the middle of its step."""
    whole = ti.cast(high >> ti.u32(5), ti.f64) * ti.f64(67108864.0) + ti.cast(
        low >> ti.u32(6), ti.f64)
    return (whole + ti.f64(0.5)) * ti.f64(1.0 / 9007199254740992.0)


@ti.func
def _log_factorial(k):
    """Logarithm of k! in double precision, by Stirling's series from 10 on."""
    x = k + ti.f64(1.0)
    product = ti.f64(1.0)
    while x < ti.f64(10.0):
        product *= x
        x += ti.f64(1.0)
    inverse = ti.f64(1.0) / x
    square = inverse * inverse
    series = inverse * (ti.f64(1.0 / 12.0) - square * (ti.f64(1.0 / 360.0) - square * (
        ti.f64(1.0 / 1260.0) - square * (ti.f64(1.0 / 1680.0) - square * (
            ti.f64(1.0 / 1188.0) - square * ti.f64(691.0 / 360360.0))))))
    half_log_of_turn = ti.f64(0.9189385332046727)  # ln(2 pi) / 2
    return ((x - ti.f64(0.5)) * ti.log(x) - x + half_log_of_turn + series) - ti.log(product)


@ti.func
def _inverted(mean, u):
    """Count whose cumulative probability is the first above u."""
    probability = ti.exp(-mean)
    count = ti.f64(0.0)
    left = u - probability
    while left > ti.f64(0.0) and probability > ti.f64(0.0):
        count += ti.f64(1.0)
        probability *= mean / count
        left -= probability
    return count


@ti.kernel
def poisson(
    key_low: ti.u32,
    key_high: ti.u32,
    number: ti.u32,
    stream: ti.u32,
    mean: ti.types.ndarray(ndim=1),
    out: ti.types.ndarray(ndim=1),
):
    """Write Poisson numbers of some means, not negative: Hoermann's PTRS where they are large.

    Hoermann 1993, Insurance: Mathematics and Economics 12, 39. A word of the counter is the pixel,
    and one is the try.
    """
    for i in range(mean.shape[0]):
        law = ti.cast(mean[i], ti.f64)
        found = ti.f64(0.0)
        if law > ti.f64(0.0):
            root = ti.sqrt(law)
            b = ti.f64(0.931) + ti.f64(2.53) * root
            a = ti.f64(0.02483) * b - ti.f64(0.059)
            scale = ti.log(ti.f64(1.1239) + ti.f64(1.1328) / (b - ti.f64(3.4)))
            quick = ti.f64(0.9277) - ti.f64(3.6224) / (b - ti.f64(2.0))
            tries = 0
            while tries < TRIES:
                w0, w1, w2, w3 = philox(ti.cast(i, ti.u32), ti.cast(tries, ti.u32), number, stream,
                                        key_low, key_high)
                u = _uniform(w0, w1)
                v = _uniform(w2, w3)
                tries += 1
                if law < ti.f64(FEW):
                    found = _inverted(law, u)
                    tries = TRIES
                else:
                    u -= ti.f64(0.5)
                    edge = ti.f64(0.5) - ti.abs(u)
                    k = ti.floor((ti.f64(2.0) * a / edge + b) * u + law + ti.f64(0.43))
                    if edge >= ti.f64(0.07) and v <= quick:
                        found = k
                        tries = TRIES
                    elif k >= ti.f64(0.0) and (edge >= ti.f64(0.013) or v <= edge):
                        bound = k * ti.log(law) - law - _log_factorial(k)
                        if ti.log(v) + scale - ti.log(a / (edge * edge) + b) <= bound:
                            found = k
                            tries = TRIES
        out[i] = found


@ti.kernel
def deposit(
    key_low: ti.u32,
    key_high: ti.u32,
    number: ti.u32,
    stream: ti.u32,
    spread: ti.types.ndarray(ndim=1),
    counts: ti.types.ndarray(ndim=1),
):
    """Replace numbers of electrons by the charge that they leave, in units of one's mean.

    Inverse Gaussian of mean N and shape N^2 / spread (Michael, Schucany & Haas 1976, American
    Statistician 30, 88).
    """
    for i in range(counts.shape[0]):
        n = ti.cast(counts[i], ti.f64)
        if n > ti.f64(0.0):
            w0, w1, w2, w3 = philox(ti.cast(i, ti.u32), ti.u32(0), number, stream,
                                    key_low, key_high)
            w4, w5, _w6, _w7 = philox(ti.cast(i, ti.u32), ti.u32(1), number, stream,
                                      key_low, key_high)
            normal = ti.sqrt(ti.f64(-2.0) * ti.log(_uniform(w0, w1))) * ti.cos(
                ti.f64(6.283185307179586) * _uniform(w2, w3))
            half = normal * normal * ti.cast(spread[0], ti.f64) / (ti.f64(2.0) * n)
            # The smaller root of x^2 - 2 (1 + half) x + 1, without a difference of large numbers.
            x = ti.f64(1.0) / (ti.f64(1.0) + half + ti.sqrt(half * (half + ti.f64(2.0))))
            if _uniform(w4, w5) > ti.f64(1.0) / (ti.f64(1.0) + x):
                x = ti.f64(1.0) / x
            counts[i] = n * x
