"""Kernels of the registration of ultrasound to CT: reduced frames, the CT's two channels, and the local fits.

One call graph, one file (a changed helper elsewhere would leave a stale cache). Plain twins stand in
``tests/reference/test_ultrasound_twins.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = [
    "COUNT",
    "FIT",
    "GRADIENT",
    "HESSIAN",
    "KERNELS",
    "RESIDUAL",
    "SUMS",
    "TOTAL",
    "channels",
    "patch_fits",
    "reduce_frames",
    "similarities",
]

#: What `patch_fits` says of a patch: sums of squares about the trend and after the fit, the number of pixels, the fit
#: (a, b), the gradient of half the residual sum by the pose (6), and its Hessian by a shift of the patch (9, rows).
TOTAL, RESIDUAL, COUNT, FIT, GRADIENT, HESSIAN, SUMS = 0, 1, 2, 3, 5, 11, 20
#: Patches that come as close to the border of the CT, voxels, are outside: single precision is safe from there on.
EDGE = np.float32(1e-3)
ZERO, UNIT = np.float32(0.0), np.float32(1.0)
ONE, NEXT = np.uint32(1), np.uint32(2)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def reduce_frames(images, mask, factor, out):  # type: ignore[no-untyped-def]
    """Mean over blocks of ``factor`` (rows, columns) pixels.

    ``images`` (n, rows, columns) uint8; ``mask`` (rows, columns) uint8, where there is an image; ``out`` float32, NaN
    where half of a block or more is outside.
    """
    fr, fc = factor[0], factor[1]
    n, rows, columns = out.shape
    for line in prange(n * rows):
        frame, row = line // rows, line % rows
        for column in range(columns):
            total, count = 0, 0
            for r in range(row * fr, (row + 1) * fr):
                for c in range(column * fc, (column + 1) * fc):
                    if mask[r, c] != 0:
                        total += int(images[frame, r, c])
                        count += 1
            if 2 * count > fr * fc:
                out[frame, row, column] = np.float32(total) / np.float32(count)
            else:
                out[frame, row, column] = np.float32(np.nan)


# Neither contract nor reassoc: the same bits compiled and cached (make bits).
@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def channels(image, turn, out):  # type: ignore[no-untyped-def]
    """The image and the magnitude of its gradient, side by side.

    ``image`` (k, j, i) float32; ``turn`` (3, 3) float32 takes a gradient per voxel along i, j, k to one per mm;
    ``out`` (k, j, i, 2). Differences are central, one-sided at the border. NaN where a neighbour is.
    """
    nk, nj, ni = image.shape
    for k in prange(nk):
        k0, k1 = max(k - 1, 0), min(k + 1, nk - 1)
        for j in range(nj):
            j0, j1 = max(j - 1, 0), min(j + 1, nj - 1)
            for i in range(ni):
                i0, i1 = max(i - 1, 0), min(i + 1, ni - 1)
                gi = (image[k, j, i1] - image[k, j, i0]) / np.float32(max(i1 - i0, 1))
                gj = (image[k, j1, i] - image[k, j0, i]) / np.float32(max(j1 - j0, 1))
                gk = (image[k1, j, i] - image[k0, j, i]) / np.float32(max(k1 - k0, 1))
                x = turn[0, 0] * gi + turn[0, 1] * gj + turn[0, 2] * gk
                y = turn[1, 0] * gi + turn[1, 1] * gj + turn[1, 2] * gk
                z = turn[2, 0] * gi + turn[2, 1] * gj + turn[2, 2] * gk
                out[k, j, i, 0] = image[k, j, i]
                out[k, j, i, 1] = np.sqrt(x * x + y * y + z * z)


@njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"nsz"})
def _fit(sums, side, floor, echo):  # type: ignore[no-untyped-def]
    """Fit of u by a p + b g and a trend (``echo``: b not negative), from what `_sums` says of a patch.

    Returns a, b, the residual sum of squares, and the inverse (3) of the 2×2 matrix of p and g about their trends (0
    for what does not vary, or is held at 0).
    """
    sp, sg, spp, sgg, spg, spu, sgu, suu, pc, pr, gc, gr = sums
    n, slope = side * side, side * side * (side * side - 1) / 12.0
    spp -= (pc * pc + pr * pr) / slope
    sgg -= (gc * gc + gr * gr) / slope
    spg -= (pc * gc + pr * gr) / slope
    # A channel that hardly varies explains nothing; the floor keeps the fit from amplifying it.
    cpp, cgg, cpg = spp - sp * sp / n + n * floor, sgg - sg * sg / n + n * floor, spg - sp * sg / n
    det = cpp * cgg - cpg * cpg
    if suu <= 0.0 or det <= 1e-9 * cpp * cgg:
        return 0.0, 0.0, suu, 0.0, 0.0, 0.0
    ipp, igg, ipg = cgg / det, cpp / det, -cpg / det
    a, b = ipp * spu + ipg * sgu, ipg * spu + igg * sgu
    if echo and b < 0.0:  # an interface reflects; what is dark along an edge is there by chance
        ipp, ipg, igg = 1.0 / cpp, 0.0, 0.0
        a, b = ipp * spu, 0.0
    return a, b, max(suu - a * spu - b * sgu, 0.0), ipp, ipg, igg


@njit(nogil=True, cache=True, error_model="numpy")
def _places(side):  # type: ignore[no-untyped-def]
    """Column and row of every pixel of a patch from its middle, row by row, (side²,) float32 each."""
    columns, rows = np.empty(side * side, np.float32), np.empty(side * side, np.float32)
    for q in range(side * side):
        columns[q] = np.float32(q % side) - np.float32(0.5 * (side - 1))
        rows[q] = np.float32(q // side) - np.float32(0.5 * (side - 1))
    return columns, rows


@njit(nogil=True, cache=True, error_model="numpy", forceinline=True, fastmath={"nsz"})
def _turned(matrix, x, y, z):  # type: ignore[no-untyped-def]
    """A 3×3 matrix times (x, y, z)."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z,
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z,
        matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z,
    )


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz"})
def _holds(shape, i, j, k, ti, tj, tk, half):  # type: ignore[no-untyped-def]
    """Whether a patch whose middle has index (i, j, k), and pixels step by t, lies inside, away from the border.

    A pixel's index is an affine map of its place in the patch, so the corners tell. NaN is outside.
    """
    away_i = half * (abs(ti[0]) + abs(ti[1])) + EDGE
    away_j = half * (abs(tj[0]) + abs(tj[1])) + EDGE
    away_k = half * (abs(tk[0]) + abs(tk[1])) + EDGE
    return (
        (i >= away_i and i < shape[2] - 1 - away_i)
        and (j >= away_j and j < shape[1] - 1 - away_j)
        and (k >= away_k and k < shape[0] - 1 - away_k)
    )


# The loops over the pixels of a patch hold no branch, no store and addresses of 32 bits: so they become vector code,
# with gathers. Only their sums may be reassociated, which that needs; what a pixel adds may not be (make bits).
@njit(nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"nsz"})
def _cell(c, r, i0, j0, k0, ti, tj, tk, dj, dk):  # type: ignore[no-untyped-def]
    """Address of the first of the eight voxels around a pixel at column c and row r, and where it lies among them."""
    fi, fj, fk = i0 + ti[0] * c + ti[1] * r, j0 + tj[0] * c + tj[1] * r, k0 + tk[0] * c + tk[1] * r
    i, j, k = np.int32(fi), np.int32(fj), np.int32(fk)
    at = np.uint32(k * np.int32(dk) + j * np.int32(dj) + i * np.int32(2))
    return at, fi - np.float32(i), fj - np.float32(j), fk - np.float32(k)


@njit(nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"nsz"})
def _value(ct, at, dj, dk, wi, wj, wk):  # type: ignore[no-untyped-def]
    """A channel at a pixel."""
    a01, a10 = np.uint32(at + dj), np.uint32(at + dk)
    a11 = np.uint32(a10 + dj)
    e00 = ct[at] + (ct[np.uint32(at + NEXT)] - ct[at]) * wi
    e01 = ct[a01] + (ct[np.uint32(a01 + NEXT)] - ct[a01]) * wi
    e10 = ct[a10] + (ct[np.uint32(a10 + NEXT)] - ct[a10]) * wi
    e11 = ct[a11] + (ct[np.uint32(a11 + NEXT)] - ct[a11]) * wi
    f0, f1 = e00 + (e01 - e00) * wj, e10 + (e11 - e10) * wj
    return f0 + (f1 - f0) * wk


@njit(nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"nsz"})
def _value_and_slopes(ct, at, dj, dk, wi, wj, wk):  # type: ignore[no-untyped-def]
    """A channel at a pixel, and its slope along i, j and k."""
    a01, a10 = np.uint32(at + dj), np.uint32(at + dk)
    a11 = np.uint32(a10 + dj)
    d00, d01 = ct[np.uint32(at + NEXT)] - ct[at], ct[np.uint32(a01 + NEXT)] - ct[a01]
    d10, d11 = ct[np.uint32(a10 + NEXT)] - ct[a10], ct[np.uint32(a11 + NEXT)] - ct[a11]
    e00, e01, e10, e11 = ct[at] + d00 * wi, ct[a01] + d01 * wi, ct[a10] + d10 * wi, ct[a11] + d11 * wi
    f0, f1 = e00 + (e01 - e00) * wj, e10 + (e11 - e10) * wj
    d0, d1 = d00 + (d01 - d00) * wj, d10 + (d11 - d10) * wj
    gj = (e01 - e00) + ((e11 - e10) - (e01 - e00)) * wk
    return f0 + (f1 - f0) * wk, d0 + (d1 - d0) * wk, gj, f1 - f0


@njit(nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"nsz"})
def _freed(value, trend, c, r):  # type: ignore[no-untyped-def]
    return value - (trend[0] + trend[1] * c + trend[2] * r)


@njit(nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"nsz"})
def _cross(ax, ay, az, bx, by, bz):  # type: ignore[no-untyped-def]
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "reassoc"})
def _sums(ct, shape, i0, j0, k0, ti, tj, tk, columns, rows, image):  # type: ignore[no-untyped-def]
    """Sums over a patch, with p and g of the CT: p, g, pp, gg, pg, pu, gu, uu, and p and g times column and row."""
    sp, sg, spp, sgg, spg, spu, sgu, suu = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    pc, pr, gc, gr = 0.0, 0.0, 0.0, 0.0
    dj, dk = np.uint32(2 * shape[2]), np.uint32(2 * shape[2] * shape[1])
    for q in range(len(image)):
        c, r = columns[q], rows[q]
        at, wi, wj, wk = _cell(c, r, i0, j0, k0, ti, tj, tk, dj, dk)
        p = np.float64(_value(ct, at, dj, dk, wi, wj, wk))
        g = np.float64(_value(ct, np.uint32(at + ONE), dj, dk, wi, wj, wk))
        u, column, row = np.float64(image[q]), np.float64(c), np.float64(r)
        sp += p
        sg += g
        spp += p * p
        sgg += g * g
        spg += p * g
        spu += p * u
        sgu += g * u
        suu += u * u
        pc += p * column
        pr += p * row
        gc += g * column
        gr += g * row
    return sp, sg, spp, sgg, spg, spu, sgu, suu, pc, pr, gc, gr


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "reassoc"})
def _slopes(ct, shape, i0, j0, k0, ti, tj, tk, columns, rows, image, turn, arm, t, fit, trend_p, trend_g):  # type: ignore[no-untyped-def]
    """Sums over a patch with j, by which a p + b g grows as the patch is shifted along x, y, z, mm.

    ``turn`` (3, 3) takes slopes along i, j, k to x, y, z; ``arm`` (3,) where the middle lies from what the pose turns
    about, and ``t`` (3, 3) whose columns are the steps by column and row, mm; ``fit`` a, b; ``trend_p``, ``trend_g``
    (3) trend of p and g: at the middle, by column and by row. Returns 27: j (3), and j times column, row, p and g (3
    each), times the residual (6, the last 3 by rotation), and jj (xx, yy, zz, xy, xz, yz).
    """
    a, b = fit
    x1, y1, z1, xc, yc, zc, xr, yr, zr = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    xp, yp, zp, xg, yg, zg, xu, yu, zu = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    uu, vu, wu, xx, yy, zz, xy, xz, yz = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    dj, dk = np.uint32(2 * shape[2]), np.uint32(2 * shape[2] * shape[1])
    for q in range(len(image)):
        c, r = columns[q], rows[q]
        at, wi, wj, wk = _cell(c, r, i0, j0, k0, ti, tj, tk, dj, dk)
        p, pi, pj, pk = _value_and_slopes(ct, at, dj, dk, wi, wj, wk)
        g, gi, gj, gk = _value_and_slopes(ct, np.uint32(at + ONE), dj, dk, wi, wj, wk)
        p, g = _freed(p, trend_p, c, r), _freed(g, trend_g, c, r)
        jx, jy, jz = _turned(turn, a * pi + b * gi, a * pj + b * gj, a * pk + b * gk)
        u = _freed(image[q], (ZERO, a, b), p, g)
        rx, ry, rz = _turned(t, c, r, ZERO)
        tx, ty, tz = _cross(arm[0] + rx, arm[1] + ry, arm[2] + rz, jx, jy, jz)
        x1 += jx
        y1 += jy
        z1 += jz
        xc += jx * c
        yc += jy * c
        zc += jz * c
        xr += jx * r
        yr += jy * r
        zr += jz * r
        xp += jx * p
        yp += jy * p
        zp += jz * p
        xg += jx * g
        yg += jy * g
        zg += jz * g
        xu += jx * u
        yu += jy * u
        zu += jz * u
        uu += tx * u
        vu += ty * u
        wu += tz * u
        xx += jx * jx
        yy += jy * jy
        zz += jz * jz
        xy += jx * jy
        xz += jx * jz
        yz += jy * jz
    return (
        x1, y1, z1, xc, yc, zc, xr, yr, zr, xp, yp, zp, xg, yg, zg, xu, yu, zu, uu, vu, wu, xx, yy, zz, xy, xz, yz,
    )  # fmt: skip


# Neither contract nor reassoc: the same bits compiled and cached (make bits).
@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def patch_fits(images, patches, side, ct, index_from_ras, centre_index, ras_from_pixel, floor, echo, slopes, out):  # type: ignore[no-untyped-def]
    """Fit every patch of ultrasound by the CT's channels, and differentiate what is left by the pose.

    ``images`` (m, side²) float32: the patches' pixels, row by row, freed of their linear trend; ``patches`` (m, 3)
    int32: frame, first row, first column; ``side``: pixels of a patch; ``ct`` (k, j, i, 2) float32, of less than 2³⁰
    voxels; ``index_from_ras`` (3, 3) float32, linear part; ``centre_index`` (3,) float32: index (i, j, k) of the centre
    about which the pose turns; ``ras_from_pixel`` (n, 3, 3) float32: (column, row, 1) to RAS mm from that centre;
    ``floor``: variance added to both channels; ``echo``: an edge may only add to the image (b not negative);
    ``slopes``: whether gradient and Hessian are wanted (else 0); ``out`` (m, SUMS) float64: see `TOTAL` and what
    follows. A patch of which a pixel lies outside the CT or its mask (NaN): all zero.

    The channels are freed of their linear trend in the patch as well. The residual is projected onto what the fit
    leaves (variable projection in Kaufman's form), so the Hessian knows that a, b and c follow the pose.
    """
    half = np.float32(0.5 * (side - 1))
    slope = side * side * (side * side - 1) / 12.0
    columns, rows = _places(side)
    flat = ct.reshape(-1)
    for m in prange(patches.shape[0]):
        t = ras_from_pixel[patches[m, 0]]
        out[m] = 0.0
        arm = _turned(t, np.float32(patches[m, 2]) + half, np.float32(patches[m, 1]) + half, UNIT)
        i0, j0, k0 = _turned(index_from_ras, arm[0], arm[1], arm[2])
        i0, j0, k0 = i0 + centre_index[0], j0 + centre_index[1], k0 + centre_index[2]
        by_column = _turned(index_from_ras, t[0, 0], t[1, 0], t[2, 0])
        by_row = _turned(index_from_ras, t[0, 1], t[1, 1], t[2, 1])
        ti, tj, tk = (by_column[0], by_row[0]), (by_column[1], by_row[1]), (by_column[2], by_row[2])
        if not _holds(ct.shape, i0, j0, k0, ti, tj, tk, half):
            continue
        sums = _sums(flat, ct.shape, i0, j0, k0, ti, tj, tk, columns, rows, images[m])
        sp, sg, _, _, _, _, _, suu, pc, pr, gc, gr = sums
        if np.isnan(sp + sg):
            continue
        n = side * side
        a, b, residual, ipp, ipg, igg = _fit(sums, side, floor, echo)
        out[m, TOTAL], out[m, RESIDUAL], out[m, COUNT] = suu, residual, n
        out[m, FIT], out[m, FIT + 1] = a, b
        if not slopes or (a == 0.0 and b == 0.0):
            continue
        trend_p = (np.float32(sp / n), np.float32(pc / slope), np.float32(pr / slope))
        trend_g = (np.float32(sg / n), np.float32(gc / slope), np.float32(gr / slope))
        s = _slopes(
            flat, ct.shape, i0, j0, k0, ti, tj, tk, columns, rows, images[m], index_from_ras.T, arm, t,
            (np.float32(a), np.float32(b)), trend_p, trend_g,
        )  # fmt: skip
        # The model grows with the step, the residual falls.
        for d in range(6):
            out[m, GRADIENT + d] = -s[15 + d]
        # Projected twice, with the floor in the fit but not in the channels: K + n floor K², K the fit's inverse.
        kpp = ipp + n * floor * (ipp * ipp + ipg * ipg)
        kpg = ipg + n * floor * (ipp * ipg + ipg * igg)
        kgg = igg + n * floor * (ipg * ipg + igg * igg)
        for d in range(3):
            for e in range(d, 3):
                jj = np.float64(s[21 + d] if d == e else s[23 + d + e])
                jj -= s[d] * s[e] / n + (s[3 + d] * s[3 + e] + s[6 + d] * s[6 + e]) / slope
                jj -= kpp * s[9 + d] * s[9 + e] + kgg * s[12 + d] * s[12 + e]
                jj -= kpg * (s[9 + d] * s[12 + e] + s[12 + d] * s[9 + e])
                out[m, HESSIAN + 3 * d + e] = jj
                out[m, HESSIAN + 3 * e + d] = jj


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def similarities(images, patches, weights, side, ct, index_from_pixel, floor, echo, out):  # type: ignore[no-untyped-def]
    """Weighted share of the patches' variance that the CT explains, at many poses.

    As in `patch_fits`, but ``weights`` (m,) float64 and ``index_from_pixel`` (poses, n, 3, 3) float32: (column, row, 1)
    to indices of ``ct``; ``out`` (poses, 2) float64: the sum of weight times share explained, and of the weights of
    patches that lie in the CT.
    """
    half = np.float32(0.5 * (side - 1))
    columns, rows = _places(side)
    flat = ct.reshape(-1)
    for pose in prange(index_from_pixel.shape[0]):
        explained, known = 0.0, 0.0
        for m in range(patches.shape[0]):
            t = index_from_pixel[pose, patches[m, 0]]
            i0, j0, k0 = _turned(t, np.float32(patches[m, 2]) + half, np.float32(patches[m, 1]) + half, UNIT)
            ti, tj, tk = (t[0, 0], t[0, 1]), (t[1, 0], t[1, 1]), (t[2, 0], t[2, 1])
            if not _holds(ct.shape, i0, j0, k0, ti, tj, tk, half):
                continue
            sums = _sums(flat, ct.shape, i0, j0, k0, ti, tj, tk, columns, rows, images[m])
            sp, sg, suu = sums[0], sums[1], sums[7]
            if np.isnan(sp + sg) or suu <= 0.0:
                continue
            residual = _fit(sums, side, floor, echo)[2]
            explained += weights[m] * (1.0 - residual / suu)
            known += weights[m]
        out[pose, 0], out[pose, 1] = explained, known


_IMAGES = "Array(float32, 2, 'C', readonly=True)"
_CT = "Array(float32, 4, 'C', readonly=True)"
_PATCHES = "Array(int32, 2, 'C', readonly=True)"

KERNELS = (
    KernelSpec(
        "ultrasound: reduced frames",
        reduce_frames,
        ("Array(uint8, 3, 'C', readonly=True), Array(uint8, 2, 'C', readonly=True), int64[::1], float32[:, :, ::1]",),
    ),
    KernelSpec(
        "ultrasound: channels of the CT",
        channels,
        ("Array(float32, 3, 'C', readonly=True), float32[:, ::1], float32[:, :, :, ::1]",),
    ),
    KernelSpec(
        "ultrasound: patches",
        patch_fits,
        (
            f"{_IMAGES}, {_PATCHES}, int64, {_CT}, float32[:, ::1], float32[::1], float32[:, :, ::1], float64, "
            "boolean, boolean, float64[:, ::1]",
        ),
    ),
    KernelSpec(
        "ultrasound: similarity at many poses",
        similarities,
        (
            f"{_IMAGES}, {_PATCHES}, Array(float64, 1, 'C', readonly=True), int64, {_CT}, float32[:, :, :, ::1], "
            "float64, boolean, float64[:, ::1]",
        ),
    ),
)
