"""Kernels of the deformable registration. Everything is float32; displacements are RAS mm.

A field lives on nodes: node n of an axis is voxel ``STEP * n`` of its level, between nodes it is trilinear, beyond the
last one constant. Arrays of a field are (k, j, i, 3); of the normal equations (k, j, i, 6) for the symmetric matrix
(xx, xy, xz, yy, yz, zz) and (k, j, i, 3) for the right side.

No sum crosses from one thread's part to another's, so results do not depend on the number of threads; of the nodes
that are solved at a time (red or black, as on a chess board) none looks at another one.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = [
    "KERNELS",
    "STEP",
    "cell_jacobians",
    "data_term",
    "locally_normalised",
    "median_of_neighbours",
    "nearest_match",
    "search_costs",
    "smoothed",
    "solved",
    "spread_costs",
    "stiffness",
    "warped",
]

#: Voxels of a level from node to node.
STEP = 2


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def locally_normalised(image, radius, floor, sums, squares, out):  # type: ignore[no-untyped-def]
    """``(image - mean) / sqrt(variance + floor)``, both of the box of ``2 radius + 1`` voxels around.

    All arrays (k, j, i) float32; ``sums`` and ``squares`` are scratch. At the border the box is cut off.
    """
    nk, nj, ni = image.shape
    r = radius
    zero = np.float32(0.0)
    for k in prange(nk):
        row, row2 = np.zeros((nj, ni), np.float32), np.zeros((nj, ni), np.float32)
        for j in range(nj):
            s, q = zero, zero
            for i in range(min(r, ni)):
                v = image[k, j, i]
                s += v
                q += v * v
            for i in range(ni):
                if i + r < ni:
                    v = image[k, j, i + r]
                    s += v
                    q += v * v
                if i - r - 1 >= 0:
                    v = image[k, j, i - r - 1]
                    s -= v
                    q -= v * v
                row[j, i] = s
                row2[j, i] = q
        c, c2 = np.zeros(ni, np.float32), np.zeros(ni, np.float32)
        for j in range(min(r, nj)):
            for i in range(ni):
                c[i] += row[j, i]
                c2[i] += row2[j, i]
        for j in range(nj):
            if j + r < nj:
                for i in range(ni):
                    c[i] += row[j + r, i]
                    c2[i] += row2[j + r, i]
            if j - r - 1 >= 0:
                for i in range(ni):
                    c[i] -= row[j - r - 1, i]
                    c2[i] -= row2[j - r - 1, i]
            for i in range(ni):
                sums[k, j, i] = c[i]
                squares[k, j, i] = c2[i]
    for j in prange(nj):
        c, c2 = np.zeros(ni, np.float32), np.zeros(ni, np.float32)
        in_j = min(j + r, nj - 1) - max(j - r, 0) + 1
        for k in range(min(r, nk)):
            for i in range(ni):
                c[i] += sums[k, j, i]
                c2[i] += squares[k, j, i]
        for k in range(nk):
            if k + r < nk:
                for i in range(ni):
                    c[i] += sums[k + r, j, i]
                    c2[i] += squares[k + r, j, i]
            if k - r - 1 >= 0:
                for i in range(ni):
                    c[i] -= sums[k - r - 1, j, i]
                    c2[i] -= squares[k - r - 1, j, i]
            in_kj = in_j * (min(k + r, nk - 1) - max(k - r, 0) + 1)
            for i in range(ni):
                n = np.float32(1.0 / (in_kj * (min(i + r, ni - 1) - max(i - r, 0) + 1)))
                mean = c[i] * n
                variance = max(c2[i] * n - mean * mean, zero)
                out[k, j, i] = (image[k, j, i] - mean) / np.sqrt(variance + floor)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def warped(moving, mask, index, turn, field, step, first, out, valid):  # type: ignore[no-untyped-def]
    """The moving image at the voxels of a fixed grid, moved by ``field``.

    ``moving`` (k, j, i) float32; ``mask`` uint8 on its grid or (0, 0, 0): everywhere; ``index`` (4, 4) float32 takes
    indices (i, j, k) of the fixed grid to those of ``moving``; ``turn`` (3, 3) float32 a displacement, mm, to one in
    indices; ``field``: node n of an axis at voxel ``step * n + first``; ``out`` (k, j, i) float32: beyond the moving
    image its border; ``valid`` uint8: 1 inside it (and ``mask``), to half a voxel beyond.
    """
    nk, nj, ni = out.shape
    ck, cj, ci, _ = field.shape
    mk, mj, mi = moving.shape
    masked = mask.size > 0
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    per_step = np.float32(1.0 / step)
    for k in prange(nk):
        row = np.empty((ci, 3), np.float32)
        at = min(max((np.float32(k) - first) * per_step, zero), np.float32(ck - 1))
        k0 = int(at)
        fk = at - np.float32(k0)
        k1 = min(k0 + 1, ck - 1)
        for j in range(nj):
            at = min(max((np.float32(j) - first) * per_step, zero), np.float32(cj - 1))
            j0 = int(at)
            fj = at - np.float32(j0)
            j1 = min(j0 + 1, cj - 1)
            w00, w01, w10, w11 = (one - fk) * (one - fj), (one - fk) * fj, fk * (one - fj), fk * fj
            for n in range(ci):
                x = w00 * field[k0, j0, n, 0] + w01 * field[k0, j1, n, 0]
                x += w10 * field[k1, j0, n, 0] + w11 * field[k1, j1, n, 0]
                y = w00 * field[k0, j0, n, 1] + w01 * field[k0, j1, n, 1]
                y += w10 * field[k1, j0, n, 1] + w11 * field[k1, j1, n, 1]
                z = w00 * field[k0, j0, n, 2] + w01 * field[k0, j1, n, 2]
                z += w10 * field[k1, j0, n, 2] + w11 * field[k1, j1, n, 2]
                for a in range(3):
                    row[n, a] = turn[a, 0] * x + turn[a, 1] * y + turn[a, 2] * z
            jf, kf = np.float32(j), np.float32(k)
            bx = index[0, 1] * jf + index[0, 2] * kf + index[0, 3]
            by = index[1, 1] * jf + index[1, 2] * kf + index[1, 3]
            bz = index[2, 1] * jf + index[2, 2] * kf + index[2, 3]
            for i in range(ni):
                at = min(max((np.float32(i) - first) * per_step, zero), np.float32(ci - 1))
                i0 = int(at)
                fi = at - np.float32(i0)
                i1 = min(i0 + 1, ci - 1)
                x = bx + index[0, 0] * np.float32(i) + row[i0, 0] * (one - fi) + row[i1, 0] * fi
                y = by + index[1, 0] * np.float32(i) + row[i0, 1] * (one - fi) + row[i1, 1] * fi
                z = bz + index[2, 0] * np.float32(i) + row[i0, 2] * (one - fi) + row[i1, 2] * fi
                inside = x >= -half and y >= -half and z >= -half
                inside = inside and x <= mi - half and y <= mj - half and z <= mk - half
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


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def data_term(fixed, moved, mask, valid, turn, matrix, right):  # type: ignore[no-untyped-def]
    """Normal equations of ``fixed(x) - moved(x + du)`` at every node: sums over the voxels around with tent weights.

    The derivative is the mean of both images' gradients (which is of second order), central inside and one-sided at the
    border. ``fixed``, ``moved`` (k, j, i) float32; ``mask`` uint8 or (0, 0, 0); ``valid`` uint8: voxels that count;
    ``turn`` (3, 3) float32 takes a gradient per voxel along i, j, k to one in RAS, per mm; ``matrix``, ``right``: out.
    """
    nk, nj, ni = fixed.shape
    ck, cj, ci, _ = right.shape
    masked = mask.size > 0
    half, one = np.float32(0.5), np.float32(1.0)
    for n in prange(ck):
        sums = np.zeros((cj, ci, 9), np.float32)
        for k in range(max(n * STEP - STEP + 1, 0), min(n * STEP + STEP, nk)):
            wk = one - np.float32(abs(k - n * STEP)) / np.float32(STEP)
            ka, kb = max(k - 1, 0), min(k + 1, nk - 1)
            per_k = half / np.float32(max(kb - ka, 1))
            for j in range(nj):
                ja, jb = max(j - 1, 0), min(j + 1, nj - 1)
                per_j = half / np.float32(max(jb - ja, 1))
                j0 = j // STEP
                fj = np.float32(j - j0 * STEP) / np.float32(STEP)
                for i in range(ni):
                    if valid[k, j, i] == 0 or (masked and mask[k, j, i] == 0):
                        continue
                    ia, ib = max(i - 1, 0), min(i + 1, ni - 1)
                    per_i = half / np.float32(max(ib - ia, 1))
                    r = fixed[k, j, i] - moved[k, j, i]
                    gi = per_i * (fixed[k, j, ib] - fixed[k, j, ia] + moved[k, j, ib] - moved[k, j, ia])
                    gj = per_j * (fixed[k, jb, i] - fixed[k, ja, i] + moved[k, jb, i] - moved[k, ja, i])
                    gk = per_k * (fixed[kb, j, i] - fixed[ka, j, i] + moved[kb, j, i] - moved[ka, j, i])
                    x = turn[0, 0] * gi + turn[0, 1] * gj + turn[0, 2] * gk
                    y = turn[1, 0] * gi + turn[1, 1] * gj + turn[1, 2] * gk
                    z = turn[2, 0] * gi + turn[2, 1] * gj + turn[2, 2] * gk
                    i0 = i // STEP
                    fi = np.float32(i - i0 * STEP) / np.float32(STEP)
                    for dj in range(2):
                        wj = wk * (fj if dj == 1 else one - fj)
                        if wj == 0.0 or j0 + dj >= cj:
                            continue
                        for di in range(2):
                            w = wj * (fi if di == 1 else one - fi)
                            if w == 0.0 or i0 + di >= ci:
                                continue
                            s = sums[j0 + dj, i0 + di]
                            s[0] += w * x * x
                            s[1] += w * x * y
                            s[2] += w * x * z
                            s[3] += w * y * y
                            s[4] += w * y * z
                            s[5] += w * z * z
                            s[6] += w * x * r
                            s[7] += w * y * r
                            s[8] += w * z * r
        for j in range(cj):
            for i in range(ci):
                for c in range(6):
                    matrix[n, j, i, c] = sums[j, i, c]
                for c in range(3):
                    right[n, j, i, c] = sums[j, i, 6 + c]


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def stiffness(field, turn, strain, least, out):  # type: ignore[no-untyped-def]
    """How stiff the body is from every node to the next ones: 1, less where it is strained as at a sliding face.

    ``turn`` (3, 3) float32 takes differences to the next node along i, j, k to derivatives in RAS, per mm; ``strain``:
    norm of the gradient at which it is half; where the determinant of the deformation is below ``least`` it is 2,
    for there it would fold; ``out`` (k, j, i) float32.
    """
    nk, nj, ni, _ = field.shape
    zero, one, two = np.float32(0.0), np.float32(1.0), np.float32(2.0)
    per_strain2 = one / (strain * strain)
    for k in prange(nk):
        g = np.empty((3, 3), np.float32)
        for j in range(nj):
            for i in range(ni):
                total = zero
                for c in range(3):
                    di = field[k, j, i + 1, c] - field[k, j, i, c] if i + 1 < ni else zero
                    dj = field[k, j + 1, i, c] - field[k, j, i, c] if j + 1 < nj else zero
                    dk = field[k + 1, j, i, c] - field[k, j, i, c] if k + 1 < nk else zero
                    for a in range(3):
                        g[c, a] = turn[a, 0] * di + turn[a, 1] * dj + turn[a, 2] * dk
                        total += g[c, a] * g[c, a]
                a, e, q = one + g[0, 0], one + g[1, 1], one + g[2, 2]
                determinant = a * (e * q - g[1, 2] * g[2, 1]) - g[0, 1] * (g[1, 0] * q - g[1, 2] * g[2, 0])
                determinant += g[0, 2] * (g[1, 0] * g[2, 1] - e * g[2, 0])
                out[k, j, i] = two if determinant < least else one / (one + total * per_strain2)


@njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _neighbours(field, stiff, per_axis, k, j, i):  # type: ignore[no-untyped-def]
    """Sum over the six neighbours of weight times field (three numbers), and of the weights.

    An edge has the stiffness of the node it starts at.
    """
    nk, nj, ni, _ = field.shape
    own = stiff[k, j, i]
    zero = np.float32(0.0)
    a = per_axis[0] * stiff[k, j, i - 1] if i > 0 else zero
    b = per_axis[0] * own if i + 1 < ni else zero
    c = per_axis[1] * stiff[k, j - 1, i] if j > 0 else zero
    d = per_axis[1] * own if j + 1 < nj else zero
    e = per_axis[2] * stiff[k - 1, j, i] if k > 0 else zero
    f = per_axis[2] * own if k + 1 < nk else zero
    left, right = field[k, j, max(i - 1, 0)], field[k, j, min(i + 1, ni - 1)]
    front, back = field[k, max(j - 1, 0), i], field[k, min(j + 1, nj - 1), i]
    below, above = field[max(k - 1, 0), j, i], field[min(k + 1, nk - 1), j, i]
    x = a * left[0] + b * right[0] + c * front[0] + d * back[0] + e * below[0] + f * above[0]
    y = a * left[1] + b * right[1] + c * front[1] + d * back[1] + e * below[1] + f * above[1]
    z = a * left[2] + b * right[2] + c * front[2] + d * back[2] + e * below[2] + f * above[2]
    return x, y, z, a + b + c + d + e + f


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def smoothed(source, stiff, per_axis, relaxation, sweeps, out):  # type: ignore[no-untyped-def]
    """``(1 + L) out = source`` by over-relaxation, L the Laplacian with weights ``per_axis`` times ``stiff``.

    ``out`` starts from what stands in it.
    """
    nk, nj, ni, _ = source.shape
    for sweep in range(2 * sweeps):
        for k in prange(nk):
            for j in range(nj):
                for i in range((k + j + sweep) & 1, ni, 2):
                    s0, s1, s2, w = _neighbours(out, stiff, per_axis, k, j, i)
                    d = relaxation / (np.float32(1.0) + w)
                    keep = np.float32(1.0) - relaxation
                    out[k, j, i, 0] = keep * out[k, j, i, 0] + d * (source[k, j, i, 0] + s0)
                    out[k, j, i, 1] = keep * out[k, j, i, 1] + d * (source[k, j, i, 1] + s1)
                    out[k, j, i, 2] = keep * out[k, j, i, 2] + d * (source[k, j, i, 2] + s2)


# Neither contract nor reassoc: the same bits compiled and cached (make bits).
@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def solved(matrix, right, before, stiff, per_axis, relaxation, sweeps, out):  # type: ignore[no-untyped-def]
    """``(A + L) out = A before + right`` by block over-relaxation: A the matrix of every node, L as in `smoothed`.

    ``out`` starts from what stands in it.
    """
    nk, nj, ni, _ = right.shape
    keep = np.float32(1.0) - relaxation
    for sweep in range(2 * sweeps):
        for k in prange(nk):
            for j in range(nj):
                for i in range((k + j + sweep) & 1, ni, 2):
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
                    if determinant <= 0.0:
                        continue
                    d = relaxation / determinant
                    out[k, j, i, 0] = keep * out[k, j, i, 0] + d * (c00 * r0 + c01 * r1 + c02 * r2)
                    out[k, j, i, 1] = keep * out[k, j, i, 1] + d * (c01 * r0 + c11 * r1 + c12 * r2)
                    out[k, j, i, 2] = keep * out[k, j, i, 2] + d * (c02 * r0 + c12 * r1 + c22 * r2)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def search_costs(fixed, weight, moved, inside, reach, stride, side, outside, out):  # type: ignore[no-untyped-def]
    """Mean squared difference of every block of ``side`` voxels for every displacement within ``reach``.

    ``fixed`` (k, j, i) float32; ``weight`` float32: how much each of its voxels counts, or (0, 0, 0): all the same;
    ``moved`` and ``inside`` (float32, 1 inside the moving image, 0 outside) on a grid that is ``reach`` steps of
    ``stride`` voxels (both along k, j, i) larger on every side; ``outside``: what a voxel costs that falls outside;
    ``out`` (blocks along k, j, displacements, blocks along i) float32, displacements along k, j, i, i fastest.
    """
    nk, nj, ni = fixed.shape
    bk, bj, _, bi = out.shape
    rows, width = 2 * reach[1] + 1, 2 * reach[2] + 1
    weighted = weight.size > 0
    zero = np.float32(0.0)
    for n in prange(bk * bj):
        b, c = n // bj, n % bj
        k0, j0 = b * side, c * side
        k1, j1 = min(k0 + side, nk), min(j0 + side, nj)
        line = np.empty(ni, np.float32)
        for dk in range(2 * reach[0] + 1):
            for dj in range(rows):
                for di in range(width):
                    first = di * stride[2]
                    for i in range(ni):
                        line[i] = zero
                    for k in range(k0, k1):
                        for j in range(j0, j1):
                            # Rows of their own: an index that is a sum keeps the loop from being vectorised.
                            one = fixed[k, j]
                            two = moved[k + dk * stride[0], j + dj * stride[1], first : first + ni]
                            there = inside[k + dk * stride[0], j + dj * stride[1], first : first + ni]
                            if weighted:
                                counts = weight[k, j]
                                for i in range(ni):
                                    e = one[i] - two[i]
                                    line[i] += counts[i] * ((e * e - outside) * there[i] + outside)
                            else:
                                for i in range(ni):
                                    e = one[i] - two[i]
                                    line[i] += (e * e - outside) * there[i] + outside
                    target = out[b, c, (dk * rows + dj) * width + di]
                    whole = ni // side
                    scale = np.float32(1.0 / ((k1 - k0) * (j1 - j0) * side))
                    if side == 2:
                        for q in range(whole):
                            target[q] = (line[2 * q] + line[2 * q + 1]) * scale
                    elif side == 3:
                        for q in range(whole):
                            target[q] = (line[3 * q] + line[3 * q + 1] + line[3 * q + 2]) * scale
                    else:
                        for q in range(whole):
                            total = zero
                            for i in range(q * side, q * side + side):
                                total += line[i]
                            target[q] = total * scale
                    if whole < bi:
                        total = zero
                        for i in range(whole * side, ni):
                            total += line[i]
                        target[whole] = total / np.float32((k1 - k0) * (j1 - j0) * (ni - whole * side))


@njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _spread(costs, before, length, along_k, place):  # type: ignore[no-untyped-def]
    """One line of blocks along k or j; ``before`` (displacements, blocks along i): scratch."""
    _, _, count, ni = costs.shape
    half, one = np.float32(0.5), np.float32(1.0)
    for t in range(length):
        k, j = (t, place) if along_k else (place, t)
        k1, j1 = (min(t + 1, length - 1), place) if along_k else (place, min(t + 1, length - 1))
        from_before = half if t > 0 else np.float32(0.0)
        from_next = half if t + 1 < length else np.float32(0.0)
        scale = one / (one + from_before + from_next)
        for d in range(count):
            for i in range(ni):
                own = costs[k, j, d, i]
                total = own + from_next * costs[k1, j1, d, i]
                if t > 0:
                    total += half * before[d, i]
                before[d, i] = own
                costs[k, j, d, i] = total * scale


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def spread_costs(costs, scratch):  # type: ignore[no-untyped-def]
    """Every block's costs become the mean of its own (weight 2) and its neighbours' (1) along each axis, in place.

    ``costs`` as `search_costs` leaves them; ``scratch`` (the more of the blocks along k and j, displacements, blocks
    along i) float32.
    """
    nk, nj, count, ni = costs.shape
    half, one = np.float32(0.5), np.float32(1.0)
    for j in prange(nj):
        _spread(costs, scratch[j], nk, True, j)
    for k in prange(nk):
        _spread(costs, scratch[k], nj, False, k)
    for k in prange(nk):
        for j in range(nj):
            for d in range(count):
                before = np.float32(0.0)
                for i in range(ni):
                    own = costs[k, j, d, i]
                    total, weight = own, one
                    if i > 0:
                        total += half * before
                        weight += half
                    if i + 1 < ni:
                        total += half * costs[k, j, d, i + 1]
                        weight += half
                    before = own
                    costs[k, j, d, i] = total / weight


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def nearest_match(costs, displacements, field, tie, out):  # type: ignore[no-untyped-def]
    """For every block the displacement with the least ``cost + tie |displacement - field|²``.

    ``costs`` as in `spread_costs`; ``displacements`` (n, 3) mm, RAS; ``field`` and ``out`` (k, j, i, 3).
    """
    nk, nj, count, ni = costs.shape
    for n in prange(nk * nj):
        k, j = n // nj, n % nj
        best, there = np.full(ni, np.inf, np.float32), np.zeros(ni, np.int32)
        here = np.empty((3, ni), np.float32)
        for i in range(ni):
            for c in range(3):
                here[c, i] = field[k, j, i, c]
        along_x, along_y, along_z = here[0], here[1], here[2]
        for d in range(count):
            x, y, z = displacements[d, 0], displacements[d, 1], displacements[d, 2]
            row = costs[k, j, d]
            number = np.int32(d)
            for i in range(ni):
                a, b, c = x - along_x[i], y - along_y[i], z - along_z[i]
                cost = row[i] + tie * (a * a + b * b + c * c)
                # Both written always: a branch keeps the loop from being vectorised.
                better = cost < best[i]
                best[i] = cost if better else best[i]
                there[i] = number if better else there[i]
        for i in range(ni):
            for c in range(3):
                out[k, j, i, c] = displacements[there[i], c]


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def median_of_neighbours(field, out):  # type: ignore[no-untyped-def]
    """Median, component by component, of every node and the 26 around it; beyond the border its nearest node."""
    nk, nj, ni, _ = field.shape
    for n in prange(nk * nj):
        k, j = n // nj, n % nj
        sorted_values = np.empty(27, np.float32)
        for i in range(ni):
            for c in range(3):
                count = 0
                for a in range(-1, 2):
                    for b in range(-1, 2):
                        for d in range(-1, 2):
                            v = field[
                                min(max(k + a, 0), nk - 1), min(max(j + b, 0), nj - 1), min(max(i + d, 0), ni - 1), c
                            ]
                            place = count
                            while place > 0 and sorted_values[place - 1] > v:
                                sorted_values[place] = sorted_values[place - 1]
                                place -= 1
                            sorted_values[place] = v
                            count += 1
                out[k, j, i, c] = sorted_values[13]


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def cell_jacobians(field, turn, least, most):  # type: ignore[no-untyped-def]
    """Least and largest determinant of the deformation in the cell from every node to the next: of its eight corners.

    ``turn`` as in `stiffness`; ``least``, ``most`` (k, j, i) float32, one less than nodes along each axis.
    """
    nk, nj, ni = least.shape
    one = np.float32(1.0)
    for k in prange(nk):
        g = np.empty((3, 3), np.float32)
        for j in range(nj):
            for i in range(ni):
                low, high = np.float32(np.inf), np.float32(-np.inf)
                for corner in range(8):
                    a, b, c = k + (corner >> 2), j + ((corner >> 1) & 1), i + (corner & 1)
                    for q in range(3):
                        di = field[a, b, i + 1, q] - field[a, b, i, q]
                        dj = field[a, j + 1, c, q] - field[a, j, c, q]
                        dk = field[k + 1, b, c, q] - field[k, b, c, q]
                        for p in range(3):
                            g[q, p] = turn[p, 0] * di + turn[p, 1] * dj + turn[p, 2] * dk
                    x, y, z = one + g[0, 0], one + g[1, 1], one + g[2, 2]
                    determinant = x * (y * z - g[1, 2] * g[2, 1]) - g[0, 1] * (g[1, 0] * z - g[1, 2] * g[2, 0])
                    determinant += g[0, 2] * (g[1, 0] * g[2, 1] - y * g[2, 0])
                    low, high = min(low, determinant), max(high, determinant)
                least[k, j, i] = low
                most[k, j, i] = high


_IMAGE = "Array(float32, 3, 'C', readonly=True)"
_ARRAY = "float32[:, :, ::1]"
_MASK = "uint8[:, :, ::1]"
_FIELD = "float32[:, :, :, ::1]"
_SQUARE = "float32[:, ::1]"

KERNELS = (
    KernelSpec(
        "deformable: local normalisation",
        locally_normalised,
        (
            f"{_IMAGE}, int64, float32, {_ARRAY}, {_ARRAY}, {_ARRAY}",
            f"{_ARRAY}, int64, float32, {_ARRAY}, {_ARRAY}, {_ARRAY}",
        ),
    ),
    KernelSpec(
        "deformable: moving image on the fixed grid",
        warped,
        (f"{_IMAGE}, {_MASK}, {_SQUARE}, {_SQUARE}, {_FIELD}, int64, float32, {_ARRAY}, {_MASK}",),
    ),
    KernelSpec(
        "deformable: normal equations",
        data_term,
        (f"{_ARRAY}, {_ARRAY}, {_MASK}, {_MASK}, {_SQUARE}, {_FIELD}, {_FIELD}",),
    ),
    KernelSpec("deformable: stiffness", stiffness, (f"{_FIELD}, {_SQUARE}, float32, float32, {_ARRAY}",)),
    KernelSpec("deformable: smoothing", smoothed, (f"{_FIELD}, {_ARRAY}, float32[::1], float32, int64, {_FIELD}",)),
    KernelSpec(
        "deformable: solution",
        solved,
        (f"{_FIELD}, {_FIELD}, {_FIELD}, {_ARRAY}, float32[::1], float32, int64, {_FIELD}",),
    ),
    KernelSpec(
        "deformable: search",
        search_costs,
        (f"{_ARRAY}, {_ARRAY}, {_ARRAY}, {_ARRAY}, int64[::1], int64[::1], int64, float32, {_FIELD}",),
    ),
    KernelSpec("deformable: spread of the search", spread_costs, (f"{_FIELD}, {_ARRAY}",)),
    KernelSpec("deformable: best match", nearest_match, (f"{_FIELD}, {_SQUARE}, {_FIELD}, float32, {_FIELD}",)),
    KernelSpec("deformable: median", median_of_neighbours, (f"{_FIELD}, {_FIELD}",)),
    KernelSpec("deformable: Jacobian", cell_jacobians, (f"{_FIELD}, {_SQUARE}, {_ARRAY}, {_ARRAY}",)),
)
