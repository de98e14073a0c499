"""The splat as Taichi itself differentiates it: one plain kernel with atomic adds."""

import taichi as ti

PI = 3.141592653589793


def _splat_of(floats, integers, constants, slices):  # type: ignore[no-untyped-def]
    """The kernel for arguments of these types."""

    @ti.kernel
    def splat(
        x: floats,
        y: floats,
        weight: floats,
        broadening: floats,
        kind: integers,
        slice_index: integers,
        table: constants,
        radius: int,
        out: slices,
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

    return splat


plain_splat = _splat_of(ti.types.ndarray(ndim=1, needs_grad=True), ti.types.ndarray(ndim=1),
                        ti.types.ndarray(ndim=3), ti.types.ndarray(ndim=3, needs_grad=True))
field_splat = _splat_of(*[ti.template()] * 4)
"""The same for Taichi's fields, on which its tape can check what a kernel overwrites."""


@ti.kernel
def weighted_sum(
    slices: ti.types.ndarray(ndim=3, needs_grad=True),
    weights: ti.types.ndarray(ndim=3),
    loss: ti.types.ndarray(ndim=1, needs_grad=True),
):
    """Add the sum of weights times slices to loss."""
    for s, y, x in slices:
        loss[0] += slices[s, y, x] * weights[s, y, x]
