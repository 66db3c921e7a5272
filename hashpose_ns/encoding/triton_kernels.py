"""The kernels of the Triton backend. Imported only where Triton is.

In all of them ``w_i = prod_j u_j`` are the corners' d-linear weights, ``u_j = f_j`` or ``1 - f_j``; with smoothing in
the forward pass the weights are ``delta(w_i) / sum_j delta(w_j)``. ``delta(w) = sin^2(pi w / 2)``,
which does not cancel near 0 as (1 - cos(pi w)) / 2 does, and ``delta'(w) = (pi / 2) sin(pi w)``.

Tables lie wherever their allocations are: a kernel gets the first one's pointer and every table's distance to it, in
floats. (Vector loads and reductions need known alignment, which Triton forgets on a pointer made from an integer.)
"""

from __future__ import annotations

import triton
import triton.language as tl

HALF_PI = tl.constexpr(1.5707963267948966)
# Instant-ngp's primes as the same 32 bits, signed; the first axis has 1.
PRIME_Y = tl.constexpr(2654435761 - 2**32)
PRIME_Z = tl.constexpr(805459861)


# Weights lie in [0, 1], where short series replace Triton's sine. Its slow path for large angles, which no weight ever
# takes, costs most of a kernel's instructions and a table in local memory.


@triton.jit
def _delta(w):
    """sin^2(pi w / 2) on [0, 1]: the sine by its series up to the 13th power (relative error below 1e-9)."""
    angle = w * HALF_PI
    s = angle * angle
    value = tl.fma(s, 1.6059043836821613e-10, -2.505210838544172e-8)
    value = tl.fma(s, value, 2.7557319223985893e-6)
    value = tl.fma(s, value, -1.984126984126984e-4)
    value = tl.fma(s, value, 8.333333333333333e-3)
    value = tl.fma(s, value, -1.6666666666666666e-1)
    sine = angle * tl.fma(s, value, 1.0)
    return sine * sine


@triton.jit
def _delta_slope(w):
    """delta' on [0, 1]: cos(pi t) about the middle, t = w - 1/2, by its series up to t^12 (error below 1e-8)."""
    t = w - 0.5
    s = t * t * 9.869604401089358  # (pi t)^2
    value = tl.fma(s, 2.08767569878681e-9, -2.755731922398589e-7)
    value = tl.fma(s, value, 2.48015873015873e-5)
    value = tl.fma(s, value, -1.3888888888888889e-3)
    value = tl.fma(s, value, 4.1666666666666664e-2)
    value = tl.fma(s, value, -0.5)
    return tl.fma(s, value, 1.0) * HALF_PI


@triton.jit
def _table(first_ptr, distances_ptr, index):
    """Pointer to a table; allocations are aligned to 16 bytes at least."""
    return first_ptr + tl.multiple_of(tl.load(distances_ptr + index), 4)


@triton.jit
def _locate(x_ptr, points, inside, axis, resolution, DIMS: tl.constexpr):
    """Cell along an axis, the fraction in it, and whether the point lay in the unit interval."""
    x = tl.load(x_ptr + points * DIMS + axis, mask=inside, other=0.0)
    unit = tl.clamp(x, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    position = unit * resolution.to(tl.float32)
    # x = 1 belongs to the last cell; a point that is no number must not read outside the table.
    cell = tl.maximum(tl.minimum(position.to(tl.int32), resolution - 1), 0)
    return cell, position - cell.to(tl.float32), (x >= 0.0) & (x <= 1.0)


@triton.jit
def _row(cx, cy, cz, resolution, hash_mask, CORNER: tl.constexpr, DIMS: tl.constexpr):
    """Table row of a corner; its bits, first axis highest, say which end of the cell along each axis."""
    vx = cx + ((CORNER >> (DIMS - 1)) & 1)
    vy = cy + ((CORNER >> (DIMS - 2)) & 1)
    dense = vx * (resolution + 1) + vy
    hashed = vx ^ (vy * PRIME_Y)
    if DIMS == 3:
        vz = cz + (CORNER & 1)
        dense = dense * (resolution + 1) + vz
        hashed = hashed ^ (vz * PRIME_Z)
    return tl.where(hash_mask == 0, dense, hashed & hash_mask)


@triton.jit
def _end(f, BIT: tl.constexpr):
    """Weight of one end of an axis."""
    if BIT == 1:
        return f
    else:
        return 1.0 - f


@triton.jit
def _weight(fx, fy, fz, CORNER: tl.constexpr, DIMS: tl.constexpr):
    """d-linear weight of a corner."""
    weight = _end(fx, (CORNER >> (DIMS - 1)) & 1) * _end(fy, (CORNER >> (DIMS - 2)) & 1)
    if DIMS == 3:
        weight *= _end(fz, CORNER & 1)
    return weight


@triton.jit
def _sum_of_delta(fx, fy, fz, DIMS: tl.constexpr):
    total = tl.zeros_like(fx)
    for corner in tl.static_range(1 << DIMS):
        total += _delta(_weight(fx, fy, fz, corner, DIMS))
    return total


@triton.jit
def _cells(x_ptr, points, inside, resolution, DIMS: tl.constexpr):
    cx, fx, in_x = _locate(x_ptr, points, inside, 0, resolution, DIMS)
    cy, fy, in_y = _locate(x_ptr, points, inside, 1, resolution, DIMS)
    if DIMS == 3:
        cz, fz, in_z = _locate(x_ptr, points, inside, 2, resolution, DIMS)
    else:
        cz, fz, in_z = cx, fx, in_x  # not used
    return cx, cy, cz, fx, fy, fz, in_x, in_y, in_z


@triton.jit
def encode_kernel(
    x_ptr,
    out_ptr,
    tables_ptr,
    distances_ptr,
    geometry_ptr,
    count,
    LEVELS: tl.constexpr,
    DIMS: tl.constexpr,
    FEATURES: tl.constexpr,
    FORWARD_SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Features of a block of points on one level."""
    points = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1)
    inside = points < count
    resolution, hash_mask = tl.load(geometry_ptr + 2 * level), tl.load(geometry_ptr + 2 * level + 1)
    table = _table(tables_ptr, distances_ptr, level)
    columns = tl.arange(0, FEATURES)
    cx, cy, cz, fx, fy, fz, _, _, _ = _cells(x_ptr, points, inside, resolution, DIMS)
    value = tl.zeros((BLOCK, FEATURES), dtype=tl.float32)
    for corner in tl.static_range(1 << DIMS):
        row = _row(cx, cy, cz, resolution, hash_mask, corner, DIMS)
        corners = tl.load(table + row[:, None] * FEATURES + columns[None, :], mask=inside[:, None], other=0.0)
        weight = _weight(fx, fy, fz, corner, DIMS)
        if FORWARD_SMOOTHING:
            weight = _delta(weight)
        value += weight[:, None] * corners
    if FORWARD_SMOOTHING:
        value = value / _sum_of_delta(fx, fy, fz, DIMS)[:, None]
    out = out_ptr + points[:, None] * (LEVELS * FEATURES) + level * FEATURES + columns[None, :]
    tl.store(out, value, mask=inside[:, None])


@triton.jit
def table_gradient_kernel(
    x_ptr,
    grad_output_ptr,
    table_grads_ptr,
    distances_ptr,
    levels_ptr,
    geometry_ptr,
    count,
    LEVELS: tl.constexpr,
    DIMS: tl.constexpr,
    FEATURES: tl.constexpr,
    FORWARD_SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds a block of points to the gradient of one level's table: the forward pass' weights, in every reading."""
    points = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    level = tl.load(levels_ptr + tl.program_id(1))
    inside = points < count
    resolution, hash_mask = tl.load(geometry_ptr + 2 * level), tl.load(geometry_ptr + 2 * level + 1)
    table_grad = _table(table_grads_ptr, distances_ptr, tl.program_id(1))
    columns = tl.arange(0, FEATURES)
    cx, cy, cz, fx, fy, fz, _, _, _ = _cells(x_ptr, points, inside, resolution, DIMS)
    grad_output = grad_output_ptr + points[:, None] * (LEVELS * FEATURES) + level * FEATURES + columns[None, :]
    grad = tl.load(grad_output, mask=inside[:, None], other=0.0)
    if FORWARD_SMOOTHING:
        grad = grad / _sum_of_delta(fx, fy, fz, DIMS)[:, None]
    for corner in tl.static_range(1 << DIMS):
        row = _row(cx, cy, cz, resolution, hash_mask, corner, DIMS)
        weight = _weight(fx, fy, fz, corner, DIMS)
        if FORWARD_SMOOTHING:
            weight = _delta(weight)
        target = table_grad + row[:, None] * FEATURES + columns[None, :]
        tl.atomic_add(target, weight[:, None] * grad, mask=inside[:, None], sem="relaxed")


@triton.jit
def x_gradient_kernel(
    x_ptr,
    grad_output_ptr,
    x_grad_ptr,
    tables_ptr,
    distances_ptr,
    geometry_ptr,
    count,
    smoothing,
    READING: tl.constexpr,
    LEVELS: tl.constexpr,
    DIMS: tl.constexpr,
    FEATURES: tl.constexpr,
    FORWARD_SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of a block of points, all levels. READING counts as `grid.READINGS` does: linear, product, product_norm,
    axis.

    With c_i = H_i . dL/dh and a_i the reading's factor on a corner, the slope along axis k is
    ``sum_i (c_i - m) a_i s_k prod_{j != k} u_j``, m = sum_i w_i c_i where weights are normalised and otherwise 0.
    """
    points = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = points < count
    columns = tl.arange(0, FEATURES)
    normalized: tl.constexpr = FORWARD_SMOOTHING or READING == 2
    x_slope = tl.zeros((BLOCK,), dtype=tl.float32)
    y_slope = tl.zeros((BLOCK,), dtype=tl.float32)
    z_slope = tl.zeros((BLOCK,), dtype=tl.float32)
    for level in range(LEVELS):
        resolution, hash_mask = tl.load(geometry_ptr + 2 * level), tl.load(geometry_ptr + 2 * level + 1)
        table = _table(tables_ptr, distances_ptr, level)
        cx, cy, cz, fx, fy, fz, in_x, in_y, in_z = _cells(x_ptr, points, inside, resolution, DIMS)
        grad_output = grad_output_ptr + points[:, None] * (LEVELS * FEATURES) + level * FEATURES + columns[None, :]
        grad = tl.load(grad_output, mask=inside[:, None], other=0.0)
        total = tl.full((BLOCK,), 1.0, dtype=tl.float32)
        if FORWARD_SMOOTHING:
            total = _sum_of_delta(fx, fy, fz, DIMS)
        mean = tl.zeros((BLOCK,), dtype=tl.float32)
        if normalized:  # corners are read twice: taking the mean off afterwards would cancel digits
            for corner in tl.static_range(1 << DIMS):
                row = _row(cx, cy, cz, resolution, hash_mask, corner, DIMS)
                corners = tl.load(table + row[:, None] * FEATURES + columns[None, :], mask=inside[:, None], other=0.0)
                weight = _weight(fx, fy, fz, corner, DIMS)
                if FORWARD_SMOOTHING:
                    weight = _delta(weight) / total
                mean += weight * tl.sum(corners * grad, axis=1)
        dx, dy, dz = tl.zeros_like(mean), tl.zeros_like(mean), tl.zeros_like(mean)
        for corner in tl.static_range(1 << DIMS):
            row = _row(cx, cy, cz, resolution, hash_mask, corner, DIMS)
            corners = tl.load(table + row[:, None] * FEATURES + columns[None, :], mask=inside[:, None], other=0.0)
            pull = tl.sum(corners * grad, axis=1) - mean
            weight = _weight(fx, fy, fz, corner, DIMS)
            factor = tl.full((BLOCK,), 1.0, dtype=tl.float32)
            if FORWARD_SMOOTHING:
                factor = _delta_slope(weight) / total
            elif READING == 1 or READING == 2:
                factor += smoothing * _delta_slope(weight)
            ux = _end(fx, (corner >> (DIMS - 1)) & 1)
            uy = _end(fy, (corner >> (DIMS - 2)) & 1)
            sx = 2.0 * ((corner >> (DIMS - 1)) & 1) - 1.0
            sy = 2.0 * ((corner >> (DIMS - 2)) & 1) - 1.0
            if DIMS == 3:
                uz = _end(fz, corner & 1)
                sz = 2.0 * (corner & 1) - 1.0
                dx += pull * (sx * factor * uy * uz)
                dy += pull * (sy * factor * ux * uz)
                dz += pull * (sz * factor * ux * uy)
            else:
                dx += pull * (sx * factor * uy)
                dy += pull * (sy * factor * ux)
        if READING == 3 and not FORWARD_SMOOTHING:
            dx *= 1.0 + smoothing * _delta_slope(fx)
            dy *= 1.0 + smoothing * _delta_slope(fy)
            dz *= 1.0 + smoothing * _delta_slope(fz)
        scale = resolution.to(tl.float32)
        x_slope += tl.where(in_x, dx * scale, 0.0)
        y_slope += tl.where(in_y, dy * scale, 0.0)
        if DIMS == 3:
            z_slope += tl.where(in_z, dz * scale, 0.0)
    tl.store(x_grad_ptr + points * DIMS, x_slope, mask=inside)
    tl.store(x_grad_ptr + points * DIMS + 1, y_slope, mask=inside)
    if DIMS == 3:
        tl.store(x_grad_ptr + points * DIMS + 2, z_slope, mask=inside)
