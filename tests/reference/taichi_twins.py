"""The splat as Taichi itself differentiates it: one plain kernel with atomic adds."""

import taichi as ti

PI = 3.141592653589793


@ti.kernel
def plain_splat(
    x: ti.types.ndarray(ndim=1, needs_grad=True),
    y: ti.types.ndarray(ndim=1, needs_grad=True),
    weight: ti.types.ndarray(ndim=1, needs_grad=True),
    broadening: ti.types.ndarray(ndim=1, needs_grad=True),
    kind: ti.types.ndarray(ndim=1),
    slice_index: ti.types.ndarray(ndim=1),
    table: ti.types.ndarray(ndim=3),
    radius: int,
    out: ti.types.ndarray(ndim=3, needs_grad=True),
):
    """Every Gaussian of every atom on a square stencil of one radius, periodic."""
    for i in x:
        for dy, dx in ti.ndrange((-radius, radius + 1), (-radius - 1, radius + 1)):
            for g in ti.static(range(5)):
                row = ti.floor(y[i] + 0.5) + dy
                column = ti.floor(x[i] + 0.5) + dx
                squared = (row - y[i]) ** 2 + (column - x[i]) ** 2
                beta = table[kind[i], 1, g] + broadening[i]
                out[slice_index[i], ti.cast(row, int) % out.shape[1],
                    ti.cast(column, int) % out.shape[2]] += (
                    weight[i] * table[kind[i], 0, g] * PI / beta
                    * ti.exp(-PI * PI * squared / beta))


@ti.kernel
def weighted_sum(
    slices: ti.types.ndarray(ndim=3, needs_grad=True),
    weights: ti.types.ndarray(ndim=3),
    loss: ti.types.ndarray(ndim=1, needs_grad=True),
):
    """Add the sum of weights times slices to loss."""
    for s, y, x in slices:
        loss[0] += slices[s, y, x] * weights[s, y, x]
