"""Kernels of the local deformation of a slice: costs of many displacements, and the normal equations per tile.

One call graph, one file (a changed helper elsewhere would leave a stale cache). Plain twins stand in
``tests/reference/test_slice_twins.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

# Numba's isfinite subtracts a number from itself, which `reassoc` makes 0: NaN is found by ``x != x`` here.

__all__ = ["KERNELS", "TILE_SUMS", "bump_costs", "tile_sums"]

#: Sums of one tile: the right side of the Hessian by the displacement (xx xy xz yy yz zz), the gradient (3), the
#: squared residual, the weights, and the residual; all weighted.
TILE_SUMS = 12


@njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _trilinear(image, i, j, k, fi, fj, fk):  # type: ignore[no-untyped-def]
    """Value between the voxel (i, j, k) and its next ones, at the shares ``fi``, ``fj``, ``fk`` of the way, float32."""
    a00 = image[k, j, i] + (image[k, j, i + 1] - image[k, j, i]) * fi
    a01 = image[k, j + 1, i] + (image[k, j + 1, i + 1] - image[k, j + 1, i]) * fi
    a10 = image[k + 1, j, i] + (image[k + 1, j, i + 1] - image[k + 1, j, i]) * fi
    a11 = image[k + 1, j + 1, i] + (image[k + 1, j + 1, i + 1] - image[k + 1, j + 1, i]) * fi
    b0 = a00 + (a01 - a00) * fj
    return b0 + (a10 + (a11 - a10) * fj - b0) * fk


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def bump_costs(slices, volume, index, bump, steps, scale, offset, most, out):  # type: ignore[no-untyped-def]
    """Sum over the pixels of ``min((scale · volume(x + bump · step) + offset - slice)², most)``, for every step.

    ``slices`` (k, j, i) float32, NaN: unknown; ``volume`` likewise; ``index`` (3, 4) float32 takes indices (i, j, k) of
    the slices to those of the volume; ``bump`` (j, i) float32: share of a step that a pixel is moved by; ``steps``
    (d, 3) float32 (i, j, k) voxels of the volume; ``out`` (d,) float64: pixels that leave the volume cost the most.
    """
    nk, nj, ni = slices.shape
    mk, mj, mi = volume.shape
    for d in prange(steps.shape[0]):
        total = 0.0
        for k in range(nk):
            for j in range(nj):
                for i in range(ni):
                    f = slices[k, j, i]
                    if f != f:
                        continue
                    b = bump[j, i]
                    x = index[0, 0] * i + index[0, 1] * j + index[0, 2] * k + index[0, 3] + b * steps[d, 0]
                    y = index[1, 0] * i + index[1, 1] * j + index[1, 2] * k + index[1, 3] + b * steps[d, 1]
                    z = index[2, 0] * i + index[2, 1] * j + index[2, 2] * k + index[2, 3] + b * steps[d, 2]
                    cost = most
                    if x >= 0.0 and y >= 0.0 and z >= 0.0 and x < mi - 1 and y < mj - 1 and z < mk - 1:
                        a, b_, c = int(x), int(y), int(z)
                        m = _trilinear(volume, a, b_, c, np.float32(x - a), np.float32(y - b_), np.float32(z - c))
                        r = scale * m + offset - f
                        if r * r < most:  # NaN costs the most
                            cost = r * r
                    total += cost
        out[d] = total


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def tile_sums(slices, volume, index, turn, displacement, tile, scale, offset, robust, out):  # type: ignore[no-untyped-def]
    """Sums of one Gauss-Newton step of ``scale · volume(x + u) + offset - slice`` by the displacement u, per tile.

    ``slices``, ``volume`` and ``index`` as in `bump_costs`; tiles are ``tile`` pixels wide, all slices of a stack in
    one; ``turn`` (3, 3) float32 takes mm in space to voxels of the volume; ``displacement`` (j, i, 3) float32 mm in
    space, of every pixel of the slices; ``robust``:
    1 / squared residual that counts half (0: all count the same); ``out`` (tiles j, tiles i, TILE_SUMS) float64.
    """
    nk, nj, ni = slices.shape
    mk, mj, mi = volume.shape
    tj, ti = out.shape[0], out.shape[1]
    one = np.float32(1.0)
    for row in prange(tj):
        for column in range(ti):
            for c in range(TILE_SUMS):
                out[row, column, c] = 0.0
            for k in range(nk):
                for j in range(row * tile, min((row + 1) * tile, nj)):
                    for i in range(column * tile, min((column + 1) * tile, ni)):
                        f = slices[k, j, i]
                        if f != f:
                            continue
                        ux, uy, uz = displacement[j, i, 0], displacement[j, i, 1], displacement[j, i, 2]
                        x = index[0, 0] * i + index[0, 1] * j + index[0, 2] * k + index[0, 3]
                        y = index[1, 0] * i + index[1, 1] * j + index[1, 2] * k + index[1, 3]
                        z = index[2, 0] * i + index[2, 1] * j + index[2, 2] * k + index[2, 3]
                        x += turn[0, 0] * ux + turn[0, 1] * uy + turn[0, 2] * uz
                        y += turn[1, 0] * ux + turn[1, 1] * uy + turn[1, 2] * uz
                        z += turn[2, 0] * ux + turn[2, 1] * uy + turn[2, 2] * uz
                        if not (x >= 0.0 and y >= 0.0 and z >= 0.0 and x < mi - 1 and y < mj - 1 and z < mk - 1):
                            continue
                        a, b, c = int(x), int(y), int(z)
                        fi, fj, fk = np.float32(x - a), np.float32(y - b), np.float32(z - c)
                        c000, c001 = volume[c, b, a], volume[c, b, a + 1]
                        c010, c011 = volume[c, b + 1, a], volume[c, b + 1, a + 1]
                        c100, c101 = volume[c + 1, b, a], volume[c + 1, b, a + 1]
                        c110, c111 = volume[c + 1, b + 1, a], volume[c + 1, b + 1, a + 1]
                        a00 = c000 + (c001 - c000) * fi
                        a01 = c010 + (c011 - c010) * fi
                        a10 = c100 + (c101 - c100) * fi
                        a11 = c110 + (c111 - c110) * fi
                        b0 = a00 + (a01 - a00) * fj
                        b1 = a10 + (a11 - a10) * fj
                        m = b0 + (b1 - b0) * fk
                        if m != m:
                            continue
                        gk = b1 - b0
                        gj = (a01 - a00) + ((a11 - a10) - (a01 - a00)) * fk
                        g0 = (c001 - c000) + ((c011 - c010) - (c001 - c000)) * fj
                        g1 = (c101 - c100) + ((c111 - c110) - (c101 - c100)) * fj
                        gi = g0 + (g1 - g0) * fk
                        gx = scale * (turn[0, 0] * gi + turn[1, 0] * gj + turn[2, 0] * gk)
                        gy = scale * (turn[0, 1] * gi + turn[1, 1] * gj + turn[2, 1] * gk)
                        gz = scale * (turn[0, 2] * gi + turn[1, 2] * gj + turn[2, 2] * gk)
                        r = scale * m + offset - f
                        w = one / (one + r * r * robust)
                        out[row, column, 0] += w * gx * gx
                        out[row, column, 1] += w * gx * gy
                        out[row, column, 2] += w * gx * gz
                        out[row, column, 3] += w * gy * gy
                        out[row, column, 4] += w * gy * gz
                        out[row, column, 5] += w * gz * gz
                        out[row, column, 6] += w * gx * r
                        out[row, column, 7] += w * gy * r
                        out[row, column, 8] += w * gz * r
                        out[row, column, 9] += w * r * r
                        out[row, column, 10] += w
                        out[row, column, 11] += w * r


_IMAGE = "Array(float32, 3, 'C', readonly=True)"

KERNELS = (
    KernelSpec(
        "slice: displacements",
        bump_costs,
        (
            f"float32[:, :, ::1], {_IMAGE}, float32[:, ::1], float32[:, ::1], float32[:, ::1], float32, float32, "
            "float32, float64[::1]",
        ),
    ),
    KernelSpec(
        "slice: deformation",
        tile_sums,
        (
            f"float32[:, :, ::1], {_IMAGE}, float32[:, ::1], float32[:, ::1], float32[:, :, ::1], int64, float32, "
            "float32, float32, float64[:, :, ::1]",
        ),
    ),
)
