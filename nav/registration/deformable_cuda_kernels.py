"""The kernels of `deformable_kernels` for a GPU: the same names, arguments and meaning.

Images, fields and costs (three dimensions and more) are arrays of the device, everything smaller is the host's. Every
thread makes one element (or walks along one line) on its own and adds in a fixed order: nothing is summed across
threads, nothing is atomic, and there is no fast-math, so that results are the same from run to run. They differ from
those of the kernels for processors by rounding: sums over a window are added up anew at every voxel.

Threads stride over the elements, so any number of them does the work; the simulator (``NUMBA_ENABLE_CUDASIM=1``) does
it with few.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import config, cuda
from numpy.typing import NDArray

from nav.registration.deformable_kernels import STEP

__all__ = [
    "data_term",
    "locally_normalised",
    "median_of_neighbours",
    "nearest_match",
    "plus",
    "search_costs",
    "smoothed",
    "solved",
    "spread_costs",
    "stiffness",
    "warped",
]

#: Threads of a block, and most blocks; a thread of the simulator is one of the system and costs as much.
THREADS, MOST_BLOCKS = (2, 2) if config.ENABLE_CUDASIM else (128, 1 << 20)  # type: ignore[attr-defined]

Small = NDArray[Any]


def _launch(kernel: Any, elements: int, *arguments: Any) -> None:
    if elements:
        kernel[min(-(-elements // THREADS), MOST_BLOCKS), THREADS](elements, *arguments)


def _numbers(small: Small) -> tuple[Any, ...]:
    """A small matrix as kernels take it: without a copy to the device for every launch."""
    return tuple(small.ravel())


@cuda.jit(device=True)
def _place(n, nj, ni):  # type: ignore[no-untyped-def]
    """(k, j, i) of element ``n``."""
    row = n // ni
    return row // nj, row % nj, n - row * ni


@cuda.jit(cache=True)
def _plane_sums(count, image, radius, sums, squares):  # type: ignore[no-untyped-def]
    _, nj, ni = image.shape
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, j, i = _place(n, nj, ni)
        s, q = np.float32(0.0), np.float32(0.0)
        for b in range(max(j - radius, 0), min(j + radius + 1, nj)):
            for a in range(max(i - radius, 0), min(i + radius + 1, ni)):
                v = image[k, b, a]
                s += v
                q += v * v
        sums[k, j, i] = s
        squares[k, j, i] = q


@cuda.jit(cache=True)
def _normalised(count, image, radius, floor, sums, squares, out):  # type: ignore[no-untyped-def]
    nk, nj, ni = image.shape
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, j, i = _place(n, nj, ni)
        s, q = np.float32(0.0), np.float32(0.0)
        first, end = max(k - radius, 0), min(k + radius + 1, nk)
        for c in range(first, end):
            s += sums[c, j, i]
            q += squares[c, j, i]
        in_j = min(j + radius, nj - 1) - max(j - radius, 0) + 1
        in_i = min(i + radius, ni - 1) - max(i - radius, 0) + 1
        share = np.float32(1.0 / ((end - first) * in_j * in_i))
        mean = s * share
        variance = max(q * share - mean * mean, np.float32(0.0))
        out[k, j, i] = (image[k, j, i] - mean) / math.sqrt(variance + floor)


def locally_normalised(image: Any, radius: int, floor: np.float32, sums: Any, squares: Any, out: Any) -> None:
    _launch(_plane_sums, image.size, image, radius, sums, squares)
    _launch(_normalised, image.size, image, radius, floor, sums, squares, out)


@cuda.jit(device=True)
def _between(at, per_step, first, count):  # type: ignore[no-untyped-def]
    """Of voxel ``at`` the nodes before and after, and the share of the way between them."""
    there = min(max((np.float32(at) - first) * per_step, np.float32(0.0)), np.float32(count - 1))
    before = int(there)
    return before, min(before + 1, count - 1), there - np.float32(before)


@cuda.jit(cache=True)
def _warped(count, moving, mask, index, turn, field, step, first, out, valid):  # type: ignore[no-untyped-def]
    _, nj, ni = out.shape
    ck, cj, ci, _ = field.shape
    mk, mj, mi = moving.shape
    masked = mask.size > 0
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    per_step = np.float32(1.0 / step)
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, j, i = _place(n, nj, ni)
        k0, k1, fk = _between(k, per_step, first, ck)
        j0, j1, fj = _between(j, per_step, first, cj)
        i0, i1, fi = _between(i, per_step, first, ci)
        w00, w01, w10, w11 = (one - fk) * (one - fj), (one - fk) * fj, fk * (one - fj), fk * fj
        dx, dy, dz = zero, zero, zero
        for c in range(3):
            left = w00 * field[k0, j0, i0, c] + w01 * field[k0, j1, i0, c]
            left += w10 * field[k1, j0, i0, c] + w11 * field[k1, j1, i0, c]
            right = w00 * field[k0, j0, i1, c] + w01 * field[k0, j1, i1, c]
            right += w10 * field[k1, j0, i1, c] + w11 * field[k1, j1, i1, c]
            d = left * (one - fi) + right * fi
            dx += turn[c] * d
            dy += turn[3 + c] * d
            dz += turn[6 + c] * d
        kf, jf, xf = np.float32(k), np.float32(j), np.float32(i)
        x = index[1] * jf + index[2] * kf + index[3] + index[0] * xf + dx
        y = index[5] * jf + index[6] * kf + index[7] + index[4] * xf + dy
        z = index[9] * jf + index[10] * kf + index[11] + index[8] * xf + dz
        inside = x >= -half and y >= -half and z >= -half
        inside = inside and x <= np.float32(mi) - half and y <= np.float32(mj) - half and z <= np.float32(mk) - half
        x = min(max(x, zero), np.float32(mi - 1))
        y = min(max(y, zero), np.float32(mj - 1))
        z = min(max(z, zero), np.float32(mk - 1))
        a, b, c = int(x), int(y), int(z)
        if inside and masked:
            inside = mask[int(z + half), int(y + half), int(x + half)] != 0
        valid[k, j, i] = np.uint8(1) if inside else np.uint8(0)
        x -= np.float32(a)
        y -= np.float32(b)
        z -= np.float32(c)
        a1, b1, c1 = min(a + 1, mi - 1), min(b + 1, mj - 1), min(c + 1, mk - 1)
        v00 = moving[c, b, a] * (one - x) + moving[c, b, a1] * x
        v01 = moving[c, b1, a] * (one - x) + moving[c, b1, a1] * x
        v10 = moving[c1, b, a] * (one - x) + moving[c1, b, a1] * x
        v11 = moving[c1, b1, a] * (one - x) + moving[c1, b1, a1] * x
        out[k, j, i] = (v00 * (one - y) + v01 * y) * (one - z) + (v10 * (one - y) + v11 * y) * z


def warped(
    moving: Any, mask: Any, index: Small, turn: Small, field: Any, step: int, first: np.float32, out: Any, valid: Any
) -> None:
    _launch(_warped, out.size, moving, mask, _numbers(index), _numbers(turn), field, step, first, out, valid)


@cuda.jit(cache=True)
def _data_term(count, fixed, moved, mask, valid, turn, matrix, right):  # type: ignore[no-untyped-def]
    nk, nj, ni = fixed.shape
    _, cj, ci, _ = right.shape
    masked = mask.size > 0
    zero, half, one = np.float32(0.0), np.float32(0.5), np.float32(1.0)
    per_step = np.float32(1.0 / STEP)
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        node_k, node_j, node_i = _place(n, cj, ci)
        xx, xy, xz, yy, yz, zz, xr, yr, zr = zero, zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(max(node_k * STEP - STEP + 1, 0), min(node_k * STEP + STEP, nk)):
            wk = one - np.float32(abs(k - node_k * STEP)) * per_step
            ka, kb = max(k - 1, 0), min(k + 1, nk - 1)
            per_k = half / np.float32(max(kb - ka, 1))
            for j in range(max(node_j * STEP - STEP + 1, 0), min(node_j * STEP + STEP, nj)):
                wj = wk * (one - np.float32(abs(j - node_j * STEP)) * per_step)
                ja, jb = max(j - 1, 0), min(j + 1, nj - 1)
                per_j = half / np.float32(max(jb - ja, 1))
                for i in range(max(node_i * STEP - STEP + 1, 0), min(node_i * STEP + STEP, ni)):
                    if valid[k, j, i] == 0 or (masked and mask[k, j, i] == 0):
                        continue
                    w = wj * (one - np.float32(abs(i - node_i * STEP)) * per_step)
                    ia, ib = max(i - 1, 0), min(i + 1, ni - 1)
                    per_i = half / np.float32(max(ib - ia, 1))
                    r = fixed[k, j, i] - moved[k, j, i]
                    gi = per_i * (fixed[k, j, ib] - fixed[k, j, ia] + moved[k, j, ib] - moved[k, j, ia])
                    gj = per_j * (fixed[k, jb, i] - fixed[k, ja, i] + moved[k, jb, i] - moved[k, ja, i])
                    gk = per_k * (fixed[kb, j, i] - fixed[ka, j, i] + moved[kb, j, i] - moved[ka, j, i])
                    x = turn[0] * gi + turn[1] * gj + turn[2] * gk
                    y = turn[3] * gi + turn[4] * gj + turn[5] * gk
                    z = turn[6] * gi + turn[7] * gj + turn[8] * gk
                    xx += w * x * x
                    xy += w * x * y
                    xz += w * x * z
                    yy += w * y * y
                    yz += w * y * z
                    zz += w * z * z
                    xr += w * x * r
                    yr += w * y * r
                    zr += w * z * r
        matrix[node_k, node_j, node_i, 0] = xx
        matrix[node_k, node_j, node_i, 1] = xy
        matrix[node_k, node_j, node_i, 2] = xz
        matrix[node_k, node_j, node_i, 3] = yy
        matrix[node_k, node_j, node_i, 4] = yz
        matrix[node_k, node_j, node_i, 5] = zz
        right[node_k, node_j, node_i, 0] = xr
        right[node_k, node_j, node_i, 1] = yr
        right[node_k, node_j, node_i, 2] = zr


def data_term(fixed: Any, moved: Any, mask: Any, valid: Any, turn: Small, matrix: Any, right: Any) -> None:
    _launch(_data_term, right.size // 3, fixed, moved, mask, valid, _numbers(turn), matrix, right)


@cuda.jit(cache=True)
def _stiffness(count, field, turn, strain, least, out):  # type: ignore[no-untyped-def]
    nk, nj, ni = out.shape
    zero, one, two = np.float32(0.0), np.float32(1.0), np.float32(2.0)
    per_strain2 = one / (strain * strain)
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, j, i = _place(n, nj, ni)
        g = cuda.local.array((3, 3), np.float32)
        total = zero
        for c in range(3):
            here = field[k, j, i, c]
            di = field[k, j, i + 1, c] - here if i + 1 < ni else zero
            dj = field[k, j + 1, i, c] - here if j + 1 < nj else zero
            dk = field[k + 1, j, i, c] - here if k + 1 < nk else zero
            for a in range(3):
                g[c, a] = turn[3 * a] * di + turn[3 * a + 1] * dj + turn[3 * a + 2] * dk
                total += g[c, a] * g[c, a]
        x, y, z = one + g[0, 0], one + g[1, 1], one + g[2, 2]
        determinant = x * (y * z - g[1, 2] * g[2, 1]) - g[0, 1] * (g[1, 0] * z - g[1, 2] * g[2, 0])
        determinant += g[0, 2] * (g[1, 0] * g[2, 1] - y * g[2, 0])
        out[k, j, i] = two if determinant < least else one / (one + total * per_strain2)


def stiffness(field: Any, turn: Small, strain: np.float32, least: np.float32, out: Any) -> None:
    _launch(_stiffness, out.size, field, _numbers(turn), strain, least, out)


@cuda.jit(device=True)
def _neighbours(field, stiff, per_axis, k, j, i):  # type: ignore[no-untyped-def]
    """As in `deformable_kernels`."""
    nk, nj, ni, _ = field.shape
    own = stiff[k, j, i]
    zero = np.float32(0.0)
    i0, i1, j0, j1 = max(i - 1, 0), min(i + 1, ni - 1), max(j - 1, 0), min(j + 1, nj - 1)
    k0, k1 = max(k - 1, 0), min(k + 1, nk - 1)
    a = per_axis[0] * stiff[k, j, i0] if i > 0 else zero
    b = per_axis[0] * own if i + 1 < ni else zero
    c = per_axis[1] * stiff[k, j0, i] if j > 0 else zero
    d = per_axis[1] * own if j + 1 < nj else zero
    e = per_axis[2] * stiff[k0, j, i] if k > 0 else zero
    f = per_axis[2] * own if k + 1 < nk else zero
    x = a * field[k, j, i0, 0] + b * field[k, j, i1, 0] + c * field[k, j0, i, 0]
    x += d * field[k, j1, i, 0] + e * field[k0, j, i, 0] + f * field[k1, j, i, 0]
    y = a * field[k, j, i0, 1] + b * field[k, j, i1, 1] + c * field[k, j0, i, 1]
    y += d * field[k, j1, i, 1] + e * field[k0, j, i, 1] + f * field[k1, j, i, 1]
    z = a * field[k, j, i0, 2] + b * field[k, j, i1, 2] + c * field[k, j0, i, 2]
    z += d * field[k, j1, i, 2] + e * field[k0, j, i, 2] + f * field[k1, j, i, 2]
    return x, y, z, a + b + c + d + e + f


@cuda.jit(cache=True)
def _smoothed(count, source, stiff, per_axis, relaxation, colour, out):  # type: ignore[no-untyped-def]
    _, nj, ni, _ = source.shape
    keep = np.float32(1.0) - relaxation
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, j, i = _place(n, nj, (ni + 1) // 2)
        i = 2 * i + ((k + j + colour) & 1)
        if i < ni:
            x, y, z, w = _neighbours(out, stiff, per_axis, k, j, i)
            d = relaxation / (np.float32(1.0) + w)
            out[k, j, i, 0] = keep * out[k, j, i, 0] + d * (source[k, j, i, 0] + x)
            out[k, j, i, 1] = keep * out[k, j, i, 1] + d * (source[k, j, i, 1] + y)
            out[k, j, i, 2] = keep * out[k, j, i, 2] + d * (source[k, j, i, 2] + z)


def _half(field: Any) -> int:
    """Nodes of one colour, or a few more."""
    nk, nj, ni, _ = field.shape
    return int(nk * nj * ((ni + 1) // 2))


def smoothed(source: Any, stiff: Any, per_axis: Small, relaxation: np.float32, sweeps: int, out: Any) -> None:
    for sweep in range(2 * sweeps):
        _launch(_smoothed, _half(out), source, stiff, _numbers(per_axis), relaxation, sweep & 1, out)


@cuda.jit(cache=True)
def _solved(count, matrix, right, before, stiff, per_axis, relaxation, colour, out):  # type: ignore[no-untyped-def]
    _, nj, ni, _ = right.shape
    keep = np.float32(1.0) - relaxation
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, j, i = _place(n, nj, (ni + 1) // 2)
        i = 2 * i + ((k + j + colour) & 1)
        if i >= ni:
            continue
        r0, r1, r2, w = _neighbours(out, stiff, per_axis, k, j, i)
        xx, xy, xz = matrix[k, j, i, 0], matrix[k, j, i, 1], matrix[k, j, i, 2]
        yy, yz, zz = matrix[k, j, i, 3], matrix[k, j, i, 4], matrix[k, j, i, 5]
        x, y, z = before[k, j, i, 0], before[k, j, i, 1], before[k, j, i, 2]
        r0 += right[k, j, i, 0] + xx * x + xy * y + xz * z
        r1 += right[k, j, i, 1] + xy * x + yy * y + yz * z
        r2 += right[k, j, i, 2] + xz * x + yz * y + zz * z
        xx += w
        yy += w
        zz += w
        c00, c01, c02 = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
        c11, c12, c22 = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
        determinant = xx * c00 + xy * c01 + xz * c02
        if determinant <= np.float32(0.0):
            continue
        d = relaxation / determinant
        out[k, j, i, 0] = keep * out[k, j, i, 0] + d * (c00 * r0 + c01 * r1 + c02 * r2)
        out[k, j, i, 1] = keep * out[k, j, i, 1] + d * (c01 * r0 + c11 * r1 + c12 * r2)
        out[k, j, i, 2] = keep * out[k, j, i, 2] + d * (c02 * r0 + c12 * r1 + c22 * r2)


def solved(
    matrix: Any, right: Any, before: Any, stiff: Any, per_axis: Small, relaxation: np.float32, sweeps: int, out: Any
) -> None:
    for sweep in range(2 * sweeps):
        _launch(
            _solved, _half(out), matrix, right, before, stiff, _numbers(per_axis), relaxation, sweep & 1, out
        )  # fmt: skip


@cuda.jit(cache=True)
def _search_costs(count, fixed, weight, moved, inside, reach, stride, side, outside, out):  # type: ignore[no-untyped-def]
    nk, nj, ni = fixed.shape
    _, bj, displacements, bi = out.shape
    rows, width = 2 * reach[1] + 1, 2 * reach[2] + 1
    weighted = weight.size > 0
    zero, one = np.float32(0.0), np.float32(1.0)
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        row, d, q = _place(n, displacements, bi)
        b, c = row // bj, row % bj
        ok = (d // (rows * width)) * stride[0]
        oj = (d // width % rows) * stride[1]
        oi = (d % width) * stride[2]
        k0, j0, i0 = b * side, c * side, q * side
        k1, j1, i1 = min(k0 + side, nk), min(j0 + side, nj), min(i0 + side, ni)
        total = zero
        for i in range(i0, i1):
            line = zero
            for k in range(k0, k1):
                for j in range(j0, j1):
                    e = fixed[k, j, i] - moved[k + ok, j + oj, i + oi]
                    cost = (e * e - outside) * np.float32(inside[k + ok, j + oj, i + oi]) + outside
                    line += (np.float32(weight[k, j, i]) if weighted else one) * cost
            total += line
        out[b, c, d, q] = total * np.float32(1.0 / ((k1 - k0) * (j1 - j0) * (i1 - i0)))


def search_costs(
    fixed: Any, weight: Any, moved: Any, inside: Any, reach: Small, stride: Small, side: int, outside: np.float32,
    out: Any,
) -> None:  # fmt: skip
    """``weight`` and ``inside`` may be uint8 as well."""
    _launch(
        _search_costs, out.size, fixed, weight, moved, inside, _numbers(reach), _numbers(stride), side, outside, out
    )


@cuda.jit(cache=True)
def _spread(count, costs, axis):  # type: ignore[no-untyped-def]
    """A thread walks along a line of blocks; of what it has overwritten it needs the last only."""
    nk, nj, displacements, ni = costs.shape
    half, one = np.float32(0.5), np.float32(1.0)
    length = nk if axis == 0 else nj if axis == 1 else ni
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        if axis == 2:
            k, j, d = _place(n, nj, displacements)
            i = 0
        else:
            k, d, i = _place(n, displacements, ni)
            j = k
        before, own = np.float32(0.0), np.float32(0.0)
        following = costs[0 if axis == 0 else k, 0 if axis == 1 else j, d, i]
        for t in range(length):
            own = following
            total, weight = own, one
            if t > 0:
                total += half * before
                weight += half
            if t + 1 < length:
                if axis == 0:
                    following = costs[t + 1, j, d, i]
                elif axis == 1:
                    following = costs[k, t + 1, d, i]
                else:
                    following = costs[k, j, d, t + 1]
                total += half * following
                weight += half
            before = own
            total /= weight
            if axis == 0:
                costs[t, j, d, i] = total
            elif axis == 1:
                costs[k, t, d, i] = total
            else:
                costs[k, j, d, t] = total


def spread_costs(costs: Any, scratch: Any = None) -> None:  # noqa: ARG001 - the one for processors needs it
    for axis, length in ((0, costs.shape[0]), (1, costs.shape[1]), (2, costs.shape[3])):
        _launch(_spread, costs.size // length, costs, axis)


@cuda.jit(cache=True)
def _nearest_match(count, costs, displacements, field, tie, out):  # type: ignore[no-untyped-def]
    _, nj, number, ni = costs.shape
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, j, i = _place(n, nj, ni)
        x, y, z = field[k, j, i, 0], field[k, j, i, 1], field[k, j, i, 2]
        best, there = np.float32(np.inf), 0
        for d in range(number):
            a, b, c = displacements[d, 0] - x, displacements[d, 1] - y, displacements[d, 2] - z
            cost = costs[k, j, d, i] + tie * (a * a + b * b + c * c)
            if cost < best:
                best, there = cost, d
        for c in range(3):
            out[k, j, i, c] = displacements[there, c]


def nearest_match(costs: Any, displacements: Small, field: Any, tie: np.float32, out: Any) -> None:
    _launch(_nearest_match, out.size // 3, costs, cuda.to_device(displacements), field, tie, out)


@cuda.jit(cache=True)
def _median_of_neighbours(count, field, out):  # type: ignore[no-untyped-def]
    nk, nj, ni, _ = field.shape
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        c = n % 3
        k, j, i = _place(n // 3, nj, ni)
        around = cuda.local.array(27, np.float32)
        number = 0
        for a in range(-1, 2):
            for b in range(-1, 2):
                for d in range(-1, 2):
                    v = field[min(max(k + a, 0), nk - 1), min(max(j + b, 0), nj - 1), min(max(i + d, 0), ni - 1), c]
                    place = number
                    while place > 0 and around[place - 1] > v:
                        around[place] = around[place - 1]
                        place -= 1
                    around[place] = v
                    number += 1
        out[k, j, i, c] = around[13]


def median_of_neighbours(field: Any, out: Any) -> None:
    _launch(_median_of_neighbours, field.size, field, out)


@cuda.jit(cache=True)
def _plus(count, one, factor, two, out):  # type: ignore[no-untyped-def]
    _, nj, ni, _ = out.shape
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        c = n % 3
        k, j, i = _place(n // 3, nj, ni)
        out[k, j, i, c] = one[k, j, i, c] + factor * two[k, j, i, c]


def plus(one: Any, factor: float, two: Any) -> Any:
    """``one + factor * two``, fields (k, j, i, 3), as a new one."""
    out = cuda.device_array(one.shape, np.float32)
    _launch(_plus, out.size, one, np.float32(factor), two, out)
    return out
