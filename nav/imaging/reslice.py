"""Oblique planes through a volume: trilinear, window and level in the same pass, straight to uint8.

Grey value 0 is kept for "outside the volume"; inside, the window maps to 1 … 255. So a picture says by itself where
there are no data. A voxel reaches half a pitch around its centre; between the outermost centres and that border the
value of the border voxel holds.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nav.geometry.kernels import KernelSpec
from nav.geometry.volume import Volume

__all__ = ["KERNELS", "OUTSIDE", "reslice_labels", "reslice_plane", "sample_points"]

#: Grey value of a pixel that lies outside the volume.
OUTSIDE = 0


@njit(nogil=True, cache=True, inline="always")
def _span(start, step, low, high, first, last):  # type: ignore[no-untyped-def]
    """Narrow ``first … last`` to the x where ``low <= start + x * step <= high`` (closed; empty when first > last)."""
    if step > 1e-12 or step < -1e-12:
        a = (low - start) / step
        b = (high - start) / step
        if a > b:
            a, b = b, a
        return max(first, a), min(last, b)
    if start < low or start > high:
        return 1.0, 0.0
    return first, last


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _clamped(volume, ci, cj, ck):  # type: ignore[no-untyped-def]
    """Trilinear value where a neighbour may be missing: coordinates are clamped to the outermost voxel centres."""
    nk, nj, ni = volume.shape
    ci = min(max(ci, 0.0), ni - 1.0)
    cj = min(max(cj, 0.0), nj - 1.0)
    ck = min(max(ck, 0.0), nk - 1.0)
    i = min(int(ci), max(ni - 2, 0))
    j = min(int(cj), max(nj - 2, 0))
    k = min(int(ck), max(nk - 2, 0))
    i1 = min(i + 1, ni - 1)
    j1 = min(j + 1, nj - 1)
    k1 = min(k + 1, nk - 1)
    fi, fj, fk = ci - i, cj - j, ck - k
    a00 = volume[k, j, i] * (1.0 - fi) + volume[k, j, i1] * fi
    a01 = volume[k, j1, i] * (1.0 - fi) + volume[k, j1, i1] * fi
    a10 = volume[k1, j, i] * (1.0 - fi) + volume[k1, j, i1] * fi
    a11 = volume[k1, j1, i] * (1.0 - fi) + volume[k1, j1, i1] * fi
    b0 = a00 + fj * (a01 - a00)
    b1 = a10 + fj * (a11 - a10)
    return b0 + fk * (b1 - b0)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _reslice_linear(volume, index_from_pixel, low, scale, out):  # type: ignore[no-untyped-def]
    # Each row is cut into outside | border | interior | border | outside before any pixel is touched, so the interior
    # loop has no test and no clamp. There 32-bit offsets (unsigned: no wrap-around test) and float32 weights measure
    # 30 % faster than the plain form; the coordinate error is below 1e-4 voxel.
    nk, nj, ni = volume.shape
    height, width = out.shape
    flat = volume.reshape(nk * nj * ni)
    row_stride = np.int32(ni)
    slice_stride = np.int32(ni * nj)
    o_i = np.uint64(1)
    o_j = np.uint64(ni)
    o_k = np.uint64(ni * nj)
    m = index_from_pixel
    di, dj, dk = np.float32(m[0, 0]), np.float32(m[1, 0]), np.float32(m[2, 0])
    gain = np.float32(scale)
    bias = np.float32(1.5 - low * scale)
    thick = min(ni, nj, nk) > 1  # an axis of one voxel has no interior: no second neighbour
    darkest = np.float32(1.0)
    brightest = np.float32(255.0)
    for y in range(height):
        i0 = m[0, 1] * y + m[0, 3]
        j0 = m[1, 1] * y + m[1, 3]
        k0 = m[2, 1] * y + m[2, 3]
        first, last = _span(i0, m[0, 0], -0.5, ni - 0.5, 0.0, width - 1.0)
        first, last = _span(j0, m[1, 0], -0.5, nj - 0.5, first, last)
        first, last = _span(k0, m[2, 0], -0.5, nk - 0.5, first, last)
        begin, end = 0, 0
        if first <= last:
            begin = int(np.ceil(first - 1e-9))
            end = int(np.floor(last + 1e-9)) + 1
        first, last = _span(i0, m[0, 0], 1e-3, ni - 1.001, 0.0, width - 1.0)
        first, last = _span(j0, m[1, 0], 1e-3, nj - 1.001, first, last)
        first, last = _span(k0, m[2, 0], 1e-3, nk - 1.001, first, last)
        inner, inner_end = end, end
        if thick and first <= last and int(np.ceil(first)) <= int(np.floor(last)):
            inner = int(np.ceil(first))
            inner_end = int(np.floor(last)) + 1
        for x in range(begin):
            out[y, x] = 0
        for x in range(max(begin, end), width):
            out[y, x] = 0
        for x in range(begin, inner):
            value = _clamped(volume, i0 + x * m[0, 0], j0 + x * m[1, 0], k0 + x * m[2, 0])
            out[y, x] = np.uint8(min(max(np.float32(value) * gain + bias, darkest), brightest))
        for x in range(inner_end, end):
            value = _clamped(volume, i0 + x * m[0, 0], j0 + x * m[1, 0], k0 + x * m[2, 0])
            out[y, x] = np.uint8(min(max(np.float32(value) * gain + bias, darkest), brightest))
        row = out[y]
        i0f, j0f, k0f = np.float32(i0), np.float32(j0), np.float32(k0)
        for x in range(inner, inner_end):
            xf = np.float32(x)
            ci = i0f + xf * di
            cj = j0f + xf * dj
            ck = k0f + xf * dk
            i = np.int32(ci)
            j = np.int32(cj)
            k = np.int32(ck)
            fi = ci - np.float32(i)
            fj = cj - np.float32(j)
            fk = ck - np.float32(k)
            at = np.uint64(np.uint32(k * slice_stride + j * row_stride + i))
            v000 = np.float32(flat[at])
            v010 = np.float32(flat[at + o_j])
            v100 = np.float32(flat[at + o_k])
            v110 = np.float32(flat[at + o_j + o_k])
            a00 = v000 + fi * (np.float32(flat[at + o_i]) - v000)
            a01 = v010 + fi * (np.float32(flat[at + o_j + o_i]) - v010)
            a10 = v100 + fi * (np.float32(flat[at + o_k + o_i]) - v100)
            a11 = v110 + fi * (np.float32(flat[at + o_k + o_j + o_i]) - v110)
            b0 = a00 + fj * (a01 - a00)
            b1 = a10 + fj * (a11 - a10)
            grey = (b0 + fk * (b1 - b0)) * gain + bias
            row[x] = np.uint8(np.int32(min(max(grey, darkest), brightest)))


@njit(nogil=True, cache=True, error_model="numpy")
def _reslice_nearest(volume, index_from_pixel, out):  # type: ignore[no-untyped-def]
    nk, nj, ni = volume.shape
    height, width = out.shape
    m = index_from_pixel
    for y in range(height):
        for x in range(width):
            i = int(np.floor(m[0, 0] * x + m[0, 1] * y + m[0, 3] + 0.5))
            j = int(np.floor(m[1, 0] * x + m[1, 1] * y + m[1, 3] + 0.5))
            k = int(np.floor(m[2, 0] * x + m[2, 1] * y + m[2, 3] + 0.5))
            if 0 <= i < ni and 0 <= j < nj and 0 <= k < nk:
                out[y, x] = volume[k, j, i]
            else:
                out[y, x] = 0


_I16 = "Array(int16, 3, 'C', readonly=True)"
_U8 = "Array(uint8, 3, 'C', readonly=True)"
_M = "Array(float64, 2, 'C', readonly=True)"
_OUT = "Array(uint8, 2, 'C')"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "oblique reslice",
        _reslice_linear,
        tuple(f"{v}, {_M}, float64, float64, {_OUT}" for v in (_I16, _U8)),
    ),
    KernelSpec("oblique reslice of labels", _reslice_nearest, (f"{_U8}, {_M}, {_OUT}",)),
)


def _check_out(out: NDArray[np.uint8], width: int, height: int) -> None:
    if out.dtype != np.uint8 or out.shape != (height, width) or not out.flags.c_contiguous:
        raise ValueError(
            f"output has dtype {out.dtype} and shape {out.shape}, expected C-contiguous uint8 {(height, width)}"
        )


def reslice_plane(
    volume: Volume,
    ras_from_pixel: NDArray[np.float64],
    width: int,
    height: int,
    window_hu: float,
    level_hu: float,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """A grey picture of the plane ``ras_from_pixel``.

    Parameters
    ----------
    volume : Volume
        int16 or uint8, any affine.
    ras_from_pixel : (4, 4) float64
        Takes (x, y, 0, 1) at pixel centres to RAS mm (`nav.imaging.planes`).
    width, height : int
        Pixels.
    window_hu, level_hu : float
        ``level - window / 2`` becomes 1, ``level + window / 2`` becomes 255. Window above 0.
    out : (height, width) uint8, optional
        Written in full when given.

    Returns
    -------
    (height, width) uint8
        0 (`OUTSIDE`) outside the volume, else 1 … 255.

    Raises
    ------
    ValueError
        On a window that is not positive, another dtype, 2**31 voxels or more, or an output of the wrong shape.
    """
    if not window_hu > 0.0:
        raise ValueError(f"window is {window_hu} HU, must be above 0")
    if volume.array.dtype not in (np.int16, np.uint8):
        raise ValueError(f"volume has dtype {volume.array.dtype}, expected int16 or uint8")
    if volume.array.size >= 2**31:
        raise ValueError(f"volume has {volume.array.size} voxels, the limit is {2**31 - 1}; crop it")
    if out is None:
        out = np.empty((height, width), np.uint8)
    _check_out(out, width, height)
    m = np.ascontiguousarray(volume.index_from_ras @ ras_from_pixel)
    _reslice_linear(volume.array, m, float(level_hu - window_hu / 2.0), 254.0 / window_hu, out)
    return out


def reslice_labels(
    labels: Volume,
    ras_from_pixel: NDArray[np.float64],
    width: int,
    height: int,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Nearest-neighbour plane through a uint8 label map; 0 outside. Parameters as in `reslice_plane`."""
    if labels.array.dtype != np.uint8:
        raise ValueError(f"label map has dtype {labels.array.dtype}, expected uint8")
    if out is None:
        out = np.empty((height, width), np.uint8)
    _check_out(out, width, height)
    _reslice_nearest(labels.array, np.ascontiguousarray(labels.index_from_ras @ ras_from_pixel), out)
    return out


def sample_points(volume: Volume, points_ras: NDArray[np.float64]) -> NDArray[np.float64]:
    """Trilinear values (n,) float64 at RAS points (n, 3); NaN outside the volume (for a hover read-out)."""
    index = np.atleast_2d(volume.to_index(points_ras))
    size = np.array(volume.size)
    inside = ((index >= -0.5) & (index <= size - 0.5)).all(axis=1)
    clamped = np.clip(index, 0.0, size - 1.0)
    low = np.minimum(clamped.astype(np.int64), np.maximum(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    f = clamped - low
    value = np.zeros(len(index))
    for corner in range(8):
        pick = [(corner >> axis) & 1 for axis in range(3)]
        at = [np.where(pick[a], high[:, a], low[:, a]) for a in range(3)]
        weight = np.prod([f[:, a] if pick[a] else 1.0 - f[:, a] for a in range(3)], axis=0)
        value += weight * volume.array[at[2], at[1], at[0]].astype(np.float64)
    value[~inside] = np.nan
    return value
