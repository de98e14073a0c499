"""What a wave meets between two transforms, each in one pass through memory, and the adjoints.

Complex arrays are real ones with a last axis of two. One thread a pixel; nothing is summed over
pixels here, so that every run gives the same bits. What is in place reads a pixel only in the
thread that writes it.
"""

import taichi as ti


@ti.func
def transmission(potential, absorbing, phase, decay):
    """exp((i phase - decay) potential - phase absorbing)."""
    left = ti.exp(-decay * potential - phase * absorbing)
    angle = phase * potential
    return left * ti.cos(angle), left * ti.sin(angle)


@ti.kernel
def transmit(
    wave: ti.types.ndarray(ndim=2),
    potential: ti.types.ndarray(ndim=1),
    absorbing: ti.types.ndarray(ndim=1),
    absorbs: int,
    phase: ti.types.ndarray(ndim=1),
    decay: ti.types.ndarray(ndim=1),
    out: ti.types.ndarray(ndim=2),
):
    """Write wave times the transmission to out, which may be the wave; (pixels, 2)."""
    for i in range(potential.shape[0]):
        lost = 0.0 * potential[i]
        if absorbs == 1:
            lost = absorbing[i]
        t_re, t_im = transmission(potential[i], lost, phase[0], decay[0])
        w_re, w_im = wave[i, 0], wave[i, 1]
        out[i, 0] = w_re * t_re - w_im * t_im
        out[i, 1] = w_re * t_im + w_im * t_re


@ti.kernel
def transmit_adjoint(
    behind: ti.types.ndarray(ndim=2),
    potential: ti.types.ndarray(ndim=1),
    absorbing: ti.types.ndarray(ndim=1),
    absorbs: int,
    phase: ti.types.ndarray(ndim=1),
    decay: ti.types.ndarray(ndim=1),
    grad: ti.types.ndarray(ndim=2),
    to_potential: int,
    potential_grad: ti.types.ndarray(ndim=1),
    to_absorbing: int,
    absorbing_grad: ti.types.ndarray(ndim=1),
    to_phase: int,
    phase_grad: ti.types.ndarray(ndim=1),
    to_decay: int,
    decay_grad: ti.types.ndarray(ndim=1),
):
    """From the gradient behind a slice to that before it, in place, and to what the slice is.

    With t = exp(e) and the wave behind it, w t, the gradient of e is conj(w t) grad. Those of
    phase and decay are left as one number a pixel, to be summed.
    """
    for i in range(potential.shape[0]):
        v = potential[i]
        lost = 0.0 * v
        if absorbs == 1:
            lost = absorbing[i]
        t_re, t_im = transmission(v, lost, phase[0], decay[0])
        b_re, b_im = behind[i, 0], behind[i, 1]
        g_re, g_im = grad[i, 0], grad[i, 1]
        e_re = b_re * g_re + b_im * g_im
        e_im = b_re * g_im - b_im * g_re
        if to_potential == 1:
            potential_grad[i] = potential_grad[i] + phase[0] * e_im - decay[0] * e_re
        if to_absorbing == 1:
            absorbing_grad[i] = absorbing_grad[i] - phase[0] * e_re
        if to_phase == 1:
            phase_grad[i] = phase_grad[i] + e_im * v - e_re * lost
        if to_decay == 1:
            decay_grad[i] = decay_grad[i] - e_re * v
        grad[i, 0] = g_re * t_re + g_im * t_im
        grad[i, 1] = g_im * t_re - g_re * t_im


@ti.kernel
def propagate(
    spectrum: ti.types.ndarray(ndim=3),
    rows: ti.types.ndarray(ndim=2),
    columns: ti.types.ndarray(ndim=2),
):
    """Multiply a spectrum (ny, nx, 2) by rows[y] columns[x], in place."""
    for y, x in ti.ndrange(spectrum.shape[0], spectrum.shape[1]):
        p_re = rows[y, 0] * columns[x, 0] - rows[y, 1] * columns[x, 1]
        p_im = rows[y, 0] * columns[x, 1] + rows[y, 1] * columns[x, 0]
        s_re, s_im = spectrum[y, x, 0], spectrum[y, x, 1]
        spectrum[y, x, 0] = s_re * p_re - s_im * p_im
        spectrum[y, x, 1] = s_re * p_im + s_im * p_re


@ti.kernel
def propagate_adjoint(
    grad: ti.types.ndarray(ndim=3),
    rows: ti.types.ndarray(ndim=2),
    columns: ti.types.ndarray(ndim=2),
    to_propagator: int,
    spectrum: ti.types.ndarray(ndim=3),
    propagator_grad: ti.types.ndarray(ndim=3),
):
    """Multiply a gradient by conj(rows[y] columns[x]), in place; add conj(spectrum) grad."""
    for y, x in ti.ndrange(grad.shape[0], grad.shape[1]):
        p_re = rows[y, 0] * columns[x, 0] - rows[y, 1] * columns[x, 1]
        p_im = rows[y, 0] * columns[x, 1] + rows[y, 1] * columns[x, 0]
        g_re, g_im = grad[y, x, 0], grad[y, x, 1]
        if to_propagator == 1:
            s_re, s_im = spectrum[y, x, 0], spectrum[y, x, 1]
            propagator_grad[y, x, 0] = propagator_grad[y, x, 0] + s_re * g_re + s_im * g_im
            propagator_grad[y, x, 1] = propagator_grad[y, x, 1] + s_re * g_im - s_im * g_re
        grad[y, x, 0] = g_re * p_re + g_im * p_im
        grad[y, x, 1] = g_im * p_re - g_re * p_im
