"""Random numbers of a counter: what one is depends on no other, nor on who draws it when.

Philox 4x32-10 (Salmon et al. 2011, Proc. SC11, 16): ten rounds that mix four words of a counter by
two of a key. Normal numbers are Box and Muller's, in single precision whatever the arrays' is, so
that they are the same in both, and of series of their own, so that they are the same on every
processor up to how it rounds sums of products, and take a third of the C library's time.
"""

import taichi as ti


@ti.func
def _product(a, b):
    """High and low words of the product of two words."""
    whole = ti.cast(a, ti.u64) * ti.cast(b, ti.u64)
    return ti.cast(whole >> ti.u64(32), ti.u32), ti.cast(whole, ti.u32)


@ti.func
def philox(c0, c1, c2, c3, k0, k1):
    """Four random words of four of a counter and two of a key, all ti.u32."""
    for _ in ti.static(range(10)):
        high_0, low_0 = _product(c0, ti.u32(0xD2511F53))
        high_1, low_1 = _product(c2, ti.u32(0xCD9E8D57))
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 += ti.u32(0x9E3779B9)
        k1 += ti.u32(0xBB67AE85)
    return c0, c1, c2, c3


@ti.func
def _root_of_log(word):
    """sqrt(-2 ln u) of u in (0, 1], to the last bits of single precision."""
    bits = ti.bit_cast(ti.cast((word >> ti.u32(8)) + ti.u32(1), ti.f32), ti.i32)
    exponent = (bits >> 23) - 151
    part = ti.bit_cast((bits & 0x7FFFFF) | 0x3F800000, ti.f32)  # 1 to 2
    above = part > ti.f32(1.4142135)  # branches that chance takes are slow
    part = ti.select(above, part * ti.f32(0.5), part)
    exponent += ti.select(above, 1, 0)
    s = (part - ti.f32(1.0)) / (part + ti.f32(1.0))
    square = s * s
    series = ti.f32(1.0) + square * (ti.f32(1.0 / 3.0) + square * (
        ti.f32(0.2) + square * (ti.f32(1.0 / 7.0) + square * ti.f32(1.0 / 9.0))))
    log = ti.cast(exponent, ti.f32) * ti.f32(0.6931471805599453) + ti.f32(2.0) * s * series
    return ti.sqrt(ti.max(ti.f32(-2.0) * log, ti.f32(0.0)))


@ti.func
def _direction(word):
    """Cosine and sine of any angle: of an eighth of a turn to either side, and of quarters."""
    x = (ti.cast((word & ti.u32(0x3FFFFFFF)) >> ti.u32(6), ti.f32) + ti.f32(0.5)
         - ti.f32(8388608.0)) * ti.f32(1.5707963267948966 / 16777216.0)
    square = x * x
    sine = x * (ti.f32(1.0) + square * (ti.f32(-1.0 / 6.0) + square * (
        ti.f32(1.0 / 120.0) + square * ti.f32(-1.0 / 5040.0))))
    cosine = ti.f32(1.0) + square * (ti.f32(-0.5) + square * (
        ti.f32(1.0 / 24.0) + square * (ti.f32(-1.0 / 720.0) + square * ti.f32(1.0 / 40320.0))))
    quarter = word >> ti.u32(30)
    turned = (quarter & ti.u32(1)) != ti.u32(0)
    sign = ti.select((quarter & ti.u32(2)) != ti.u32(0), ti.f32(-1.0), ti.f32(1.0))
    return (sign * ti.select(turned, -sine, cosine), sign * ti.select(turned, cosine, sine))


@ti.func
def _normals(first, second):
    """Two independent normal numbers of two words."""
    radius = _root_of_log(first)
    cosine, sine = _direction(second)
    return radius * cosine, radius * sine


@ti.kernel
def random_words(
    counter: ti.types.ndarray(ndim=2), key: ti.types.ndarray(ndim=1),
    out: ti.types.ndarray(ndim=2),
):
    """Words (n, 4) of counters (n, 4) and a key (2,), all as 32-bit integers."""
    for i in range(counter.shape[0]):
        a, b, c, d = philox(
            ti.cast(counter[i, 0], ti.u32), ti.cast(counter[i, 1], ti.u32),
            ti.cast(counter[i, 2], ti.u32), ti.cast(counter[i, 3], ti.u32),
            ti.cast(key[0], ti.u32), ti.cast(key[1], ti.u32))
        out[i, 0] = ti.cast(a, ti.i32)
        out[i, 1] = ti.cast(b, ti.i32)
        out[i, 2] = ti.cast(c, ti.i32)
        out[i, 3] = ti.cast(d, ti.i32)


@ti.kernel
def noise_pair(
    key_low: ti.u32,
    key_high: ti.u32,
    part: ti.u32,
    number: ti.u32,
    stream: ti.u32,
    amplitudes: ti.types.ndarray(ndim=1),
    largest: float,
    out: ti.types.ndarray(ndim=3),
):
    """Spectrum of two random real fields A and B at once, that of A + i B.

    Every coefficient is a complex normal number of its own: its Hermitian part is A's spectrum,
    the rest is i times B's, and both have the given root mean square. A coefficient goes by its
    whole periods along x and y, so that it is the same on every grid over the same field.

    Args:
        key_low: word of the key.
        key_high: the other.
        part: word of the counter, and so are
        number: and
        stream: while the fourth one counts coefficients.
        amplitudes: of |k| in even steps from 0 to `largest`, (n,).
        largest: end of the band [cycles/pixel], below 1/2; beyond it and at k = 0 there is nothing.
        out: (ny, nx, 2), written whole; real and imaginary part of each coefficient.
    """
    for row in range(out.shape[0]):
        ny = out.shape[0]
        nx = out.shape[1]
        ky = row
        if 2 * row > ny:
            ky = row - ny
        fy = ky / ny
        room = largest * largest - fy * fy
        half = -1
        if room >= 0.0:
            half = int(ti.floor(ti.sqrt(room) * nx))
        for x in range(half + 1, nx - ti.max(half, 0)):
            out[row, x, 0] = 0.0
            out[row, x, 1] = 0.0
        steps = (amplitudes.shape[0] - 1) / largest
        for j in range(-((half + 1) // 2), half // 2 + 1):
            # One draw of four words is two neighbouring coefficients.
            place = ti.cast(((ky & 0xFFFF) << 16) | (j & 0xFFFF), ti.u32)
            a, b, c, d = philox(place, part, number, stream, key_low, key_high)
            drawn = ti.Vector([0.0, 0.0, 0.0, 0.0], ti.f32)
            drawn[0], drawn[1] = _normals(a, b)
            drawn[2], drawn[3] = _normals(c, d)
            for i in ti.static(range(2)):
                kx = 2 * j + i
                if ti.abs(kx) <= half:
                    fx = kx / nx
                    at = ti.sqrt(fx * fx + fy * fy) * steps
                    low = ti.min(int(at), amplitudes.shape[0] - 2)
                    rest = at - low
                    root = amplitudes[low] * (1.0 - rest) + amplitudes[low + 1] * rest
                    if kx == 0 and ky == 0:
                        root *= 0.0
                    column = kx
                    if kx < 0:
                        column = kx + nx
                    out[row, column, 0] = root * drawn[2 * i]
                    out[row, column, 1] = root * drawn[2 * i + 1]
