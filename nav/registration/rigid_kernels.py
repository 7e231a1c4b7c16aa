"""Kernels of the rigid registration of two images: where to look, and the normal equations of one step.

One call graph, one file (a changed helper elsewhere would leave a stale cache). Plain twins stand in
``tests/reference/test_rigid_image_twins.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = [
    "BLOCKS",
    "INSIDE",
    "KERNELS",
    "R_R",
    "SUMS",
    "V_R",
    "normal_equations",
    "patch_correlations",
    "strongest_gradients",
]

#: The samples are summed in so many blocks of neighbours, in a fixed order: a result does not depend on the number of
#: threads, and the blocks are what the error estimate leaves out one by one.
BLOCKS = 64
#: Sums of one block: 64 of v vᵀ (rows), 8 of v r, r r, all weighted; and the number of samples inside the moving image.
#: v is (six derivatives of the fixed image by the pose, moving value, 1).
SUMS = 74
#: Where in the sums of one block those stand that are no row of v vᵀ: v r (8 of them), r r, and the number.
V_R, R_R, INSIDE = 64, 72, 73
#: Samples that are summed at a time.
CHUNK = 256


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def strongest_gradients(image, mask, cell, turn, positions, values, gradients):  # type: ignore[no-untyped-def]
    """In every cell of ``cell`` (k, j, i) voxels, the voxel with the largest gradient magnitude (of every other row of
    a cell that is four or more wide).

    ``mask`` (k, j, i) uint8 or (0, 0, 0): everywhere. ``turn`` (3, 3) float32 takes a gradient per voxel along i, j, k
    to one in space. Cells are numbered along k, j, i. ``positions`` (cells, 3) float32: index (i, j, k); ``values``
    (cells,); ``gradients`` (cells, 4): in space, and its squared magnitude; all zero where no voxel of it is inside.
    """
    nk, nj, ni = image.shape
    masked = mask.size > 0
    ck, cj, ci = cell[0], cell[1], cell[2]
    cells_j = (nj + cj - 1) // cj
    cells_i = (ni + ci - 1) // ci
    # In large cells every other row will do: an edge is found on the next one.
    step_k = 2 if ck >= 4 else 1
    step_j = 2 if cj >= 4 else 1
    half = np.float32(0.5)
    for row in prange(((nk + ck - 1) // ck) * cells_j):
        k0 = (row // cells_j) * ck
        j0 = (row % cells_j) * cj
        for column in range(cells_i):
            n = row * cells_i + column
            best = np.float32(0.0)
            bi, bj, bk = 0, 0, 0
            for k in range(max(k0, 1), min(k0 + ck, nk - 1), step_k):
                for j in range(max(j0, 1), min(j0 + cj, nj - 1), step_j):
                    for i in range(max(column * ci, 1), min(column * ci + ci, ni - 1)):
                        if masked and mask[k, j, i] == 0:
                            continue
                        gi = half * (image[k, j, i + 1] - image[k, j, i - 1])
                        gj = half * (image[k, j + 1, i] - image[k, j - 1, i])
                        gk = half * (image[k + 1, j, i] - image[k - 1, j, i])
                        x = turn[0, 0] * gi + turn[0, 1] * gj + turn[0, 2] * gk
                        y = turn[1, 0] * gi + turn[1, 1] * gj + turn[1, 2] * gk
                        z = turn[2, 0] * gi + turn[2, 1] * gj + turn[2, 2] * gk
                        size = x * x + y * y + z * z
                        if size > best:
                            best = size
                            bi, bj, bk = i, j, k
                            gradients[n, 0], gradients[n, 1], gradients[n, 2] = x, y, z
            if best == np.float32(0.0):
                gradients[n, 0], gradients[n, 1], gradients[n, 2] = best, best, best
            gradients[n, 3] = best
            positions[n, 0], positions[n, 1], positions[n, 2] = np.float32(bi), np.float32(bj), np.float32(bk)
            values[n] = image[bk, bj, bi]


@njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _trilinear(image, i, j, k, fi, fj, fk):  # type: ignore[no-untyped-def]
    """Value between the voxel (i, j, k) and its next ones, at the shares ``fi``, ``fj``, ``fk`` of the way, float32."""
    one = np.float32(1.0)
    a00 = image[k, j, i] * (one - fi) + image[k, j, i + 1] * fi
    a01 = image[k, j + 1, i] * (one - fi) + image[k, j + 1, i + 1] * fi
    a10 = image[k + 1, j, i] * (one - fi) + image[k + 1, j, i + 1] * fi
    a11 = image[k + 1, j + 1, i] * (one - fi) + image[k + 1, j + 1, i + 1] * fi
    return (a00 * (one - fj) + a01 * fj) * (one - fk) + (a10 * (one - fj) + a11 * fj) * fk


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def normal_equations(positions, values, jacobian, moving, mask, index, scale, offset, robust, out):  # type: ignore[no-untyped-def]
    """Sums of one Gauss-Newton step of ``scale * moving(index x) + offset - fixed(x)``, per block of samples.

    ``positions`` (n, 3) float32; ``values`` (n,); ``jacobian`` (n, 6): derivative of the fixed image by the pose;
    ``moving`` (k, j, i) float32; ``mask`` as in `strongest_gradients`, on the grid of ``moving``; ``index`` (4, 4)
    float32 takes positions to indices (i, j, k) of ``moving``; ``robust``: 1 / variance at which a residual begins to
    count less (weight 1 / sqrt(1 + r² robust)), 0: never; ``out`` (BLOCKS, SUMS) float64.
    """
    n = positions.shape[0]
    nk, nj, ni = moving.shape
    masked = mask.size > 0
    one = np.float32(1.0)
    zero = np.float32(0.0)
    for block in prange(BLOCKS):
        # A chunk of samples is looked up first and summed then, sum by sum, eight samples at a time: rows of v, r, the
        # weight, and the weight times one row. Sums of a chunk are in single precision, of all chunks in double.
        v = np.empty((9, CHUNK), np.float32)
        weight = np.empty(CHUNK, np.float32)
        weighted = np.empty(CHUNK, np.float32)
        for c in range(SUMS):
            out[block, c] = 0.0
        first, last = n * block // BLOCKS, n * (block + 1) // BLOCKS
        for begin in range(first, last, CHUNK):
            count = min(CHUNK, last - begin)
            inside = 0
            for t in range(count):
                q = begin + t
                pi, pj, pk = positions[q, 0], positions[q, 1], positions[q, 2]
                x = index[0, 0] * pi + index[0, 1] * pj + index[0, 2] * pk + index[0, 3]
                y = index[1, 0] * pi + index[1, 1] * pj + index[1, 2] * pk + index[1, 3]
                z = index[2, 0] * pi + index[2, 1] * pj + index[2, 2] * pk + index[2, 3]
                # Written so that NaN is outside too.
                if not (x >= 0.0 and y >= 0.0 and z >= 0.0 and x < ni - 1 and y < nj - 1 and z < nk - 1):
                    continue
                i, j, k = int(x), int(y), int(z)
                if masked and mask[int(z + 0.5), int(y + 0.5), int(x + 0.5)] == 0:
                    continue
                m = _trilinear(moving, i, j, k, x - np.float32(i), y - np.float32(j), z - np.float32(k))
                r = scale * m + offset - values[q]
                for c in range(6):
                    v[c, inside] = jacobian[q, c]
                v[6, inside] = m
                v[7, inside] = one
                v[8, inside] = r
                weight[inside] = one / np.sqrt(one + r * r * robust)
                inside += 1
            for a in range(9):
                for t in range(inside):
                    weighted[t] = weight[t] * v[a, t]
                for b in range(a, 9):
                    total = zero
                    for t in range(inside):
                        total += weighted[t] * v[b, t]
                    if b < 8:
                        out[block, 8 * a + b] += total
                    elif a < 8:
                        out[block, V_R + a] += total
                    else:
                        out[block, R_R] += total
            out[block, INSIDE] += inside
        for a in range(8):
            for b in range(a):
                out[block, 8 * a + b] = out[block, 8 * b + a]


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def patch_correlations(fixed, mask, moving, moving_mask, index, side, least_variance, out):  # type: ignore[no-untyped-def]
    """Correlation of fixed and moving in every patch of ``side`` (k, j, i) voxels of ``fixed``.

    ``fixed``, ``moving`` (k, j, i) float32; masks as in `strongest_gradients`, each on its image; ``index`` (4, 4)
    float32 takes indices (i, j, k) of ``fixed`` to those of ``moving``; ``out`` (patches along k, j, i) float64: NaN
    where the fixed image's variance is below ``least_variance`` or half of the patch lies outside an image or mask.
    """
    nk, nj, ni = fixed.shape
    mk, mj, mi = moving.shape
    pk, pj, pi = out.shape
    masked, moving_masked = mask.size > 0, moving_mask.size > 0
    for row in prange(pk * pj):
        for column in range(pi):
            n = 0
            sf, sm, sff, smm, sfm = 0.0, 0.0, 0.0, 0.0, 0.0
            for k in range((row // pj) * side[0], min((row // pj + 1) * side[0], nk)):
                for j in range((row % pj) * side[1], min((row % pj + 1) * side[1], nj)):
                    for i in range(column * side[2], min((column + 1) * side[2], ni)):
                        if masked and mask[k, j, i] == 0:
                            continue
                        x = index[0, 0] * i + index[0, 1] * j + index[0, 2] * k + index[0, 3]
                        y = index[1, 0] * i + index[1, 1] * j + index[1, 2] * k + index[1, 3]
                        z = index[2, 0] * i + index[2, 1] * j + index[2, 2] * k + index[2, 3]
                        if not (x >= 0.0 and y >= 0.0 and z >= 0.0 and x < mi - 1 and y < mj - 1 and z < mk - 1):
                            continue
                        if moving_masked and moving_mask[int(z + 0.5), int(y + 0.5), int(x + 0.5)] == 0:
                            continue
                        a, b, c = int(x), int(y), int(z)
                        fx, fy, fz = np.float32(x - a), np.float32(y - b), np.float32(z - c)
                        m = np.float64(_trilinear(moving, a, b, c, fx, fy, fz))
                        f = np.float64(fixed[k, j, i])
                        n += 1
                        sf += f
                        sm += m
                        sff += f * f
                        smm += m * m
                        sfm += f * m
            out[row // pj, row % pj, column] = np.nan
            if 2 * n < side[0] * side[1] * side[2] or n == 0:
                continue
            vf = sff / n - (sf / n) * (sf / n)
            vm = smm / n - (sm / n) * (sm / n)
            if vf < least_variance:
                continue
            # A patch that shows something here and nothing there does not agree.
            out[row // pj, row % pj, column] = 0.0
            if vm > 1e-9 * vf:
                out[row // pj, row % pj, column] = (sfm / n - sf / n * sm / n) / np.sqrt(vf * vm)


_IMAGE = "Array(float32, 3, 'C', readonly=True)"
_MASK = "uint8[:, :, ::1]"

KERNELS = (
    KernelSpec(
        "rigid: where to look",
        strongest_gradients,
        (f"{_IMAGE}, {_MASK}, int64[::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[:, ::1]",),
    ),
    KernelSpec(
        "rigid: normal equations",
        normal_equations,
        (
            f"float32[:, ::1], float32[::1], float32[:, ::1], {_IMAGE}, {_MASK}, float32[:, ::1], "
            "float32, float32, float32, float64[:, ::1]",
        ),
    ),
    KernelSpec(
        "rigid: agreement",
        patch_correlations,
        (f"{_IMAGE}, {_MASK}, {_IMAGE}, {_MASK}, float32[:, ::1], int64[::1], float64, float64[:, :, ::1]",),
    ),
)
