"""A tracked image (ultrasound) warped into a pane's pixel grid and blended there at 1:1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nav.geometry.kernels import KernelSpec
from nav.imaging.planes import PlaneAxes

__all__ = ["KERNELS", "ImagePlane", "blend_image", "grey_plane", "image_mask", "image_plane", "plane_difference"]


@dataclass(frozen=True, slots=True, eq=False)
class ImagePlane:
    """Where a 2-D image lies.

    Attributes
    ----------
    axes : PlaneAxes
        Screen axes that show the image upright: columns to the right, rows downwards.
    centre_ras : (3,) float64
        Middle of the image, RAS mm.
    corners_ras : (4, 3) float64
        Outline, RAS mm, in order around it.
    """

    axes: PlaneAxes
    centre_ras: NDArray[np.float64]
    corners_ras: NDArray[np.float64]


def grey_plane(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The 2-D grey image of what a stream delivers: (j, i), (1, j, i) or (1, j, i, components), uint8.

    Raises
    ------
    ValueError
        On several slices or another dtype.
    """
    a = np.asarray(array)
    if a.dtype != np.uint8:
        raise ValueError(f"tracked image has dtype {a.dtype}, expected uint8")
    if a.ndim == 4:
        a = a[..., 0] if a.shape[-1] == 1 else a[..., :3].mean(axis=-1).astype(np.uint8)
    if a.ndim == 3:
        if a.shape[0] != 1:
            raise ValueError(f"tracked image has {a.shape[0]} slices, expected one")
        a = a[0]
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"tracked image has shape {np.shape(array)}, expected (rows, columns)")
    return np.ascontiguousarray(a)


def image_plane(ras_from_index: NDArray[np.float64], width: int, height: int) -> ImagePlane:
    """Axes, centre and outline of an image of ``width`` × ``height`` pixels."""
    right = ras_from_index[:3, 0] / np.linalg.norm(ras_from_index[:3, 0])
    down = ras_from_index[:3, 1] - right * float(right @ ras_from_index[:3, 1])
    down = down / np.linalg.norm(down)
    index = np.array(
        [[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]], dtype=np.float64
    )
    corners = index @ ras_from_index[:3, :2].T + ras_from_index[:3, 3]
    return ImagePlane(PlaneAxes(right, -down), corners.mean(axis=0), corners)


def plane_difference(plane: ImagePlane, ras_from_pixel: NDArray[np.float64]) -> tuple[float, float]:
    """Angle (0 to 90 degrees) between image and pane, and the outline's largest distance from the pane in mm."""
    normal = ras_from_pixel[:3, 2]
    cosine = abs(float(plane.axes.into @ normal))
    depth = (plane.corners_ras - ras_from_pixel[:3, 3]) @ normal
    return float(np.rad2deg(np.arccos(min(cosine, 1.0)))), float(np.abs(depth).max())


@njit(nogil=True, cache=True, error_model="numpy")
def _mask(image, column_first, column_last, mask):  # type: ignore[no-untyped-def]
    height, width = image.shape
    for x in range(width):
        column_first[x] = height
        column_last[x] = -1
    for y in range(height):
        for x in range(width):
            if image[y, x] > 0:
                if column_first[x] > y:
                    column_first[x] = y
                column_last[x] = y
    for y in range(height):
        first = width
        last = -1
        for x in range(width):
            if image[y, x] > 0:
                if first > x:
                    first = x
                last = x
        for x in range(width):
            mask[y, x] = 1 if first <= x <= last and column_first[x] <= y <= column_last[x] else 0


def image_mask(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which pixels belong to the picture: (rows, columns) uint8, 1 or 0.

    A pixel belongs to it when it lies between the outermost lit pixels of its row and also of its column. For a sector
    (fan) image that is the sector, black vessels and shadows included, and not the black corners around it.
    """
    mask = np.empty(image.shape, np.uint8)
    _mask(image, np.empty(image.shape[1], np.int32), np.empty(image.shape[1], np.int32), mask)
    return mask


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _span(start, step, high, first, last):  # type: ignore[no-untyped-def]
    """Narrow ``first … last`` to the x where ``0 <= start + x * step <= high``, with a slack for rounding."""
    low = -1e-6
    high += 1e-6
    if step > 1e-12 or step < -1e-12:
        a = (low - start) / step
        b = (high - start) / step
        if a > b:
            a, b = b, a
        return max(first, a), min(last, b)
    if start < low or start > high:
        return 1.0, 0.0
    return first, last


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _blend(image, mask, m, ratio, out):  # type: ignore[no-untyped-def]
    # As in the reslice: each row is clipped first, 32-bit unsigned offsets, float32 weights.
    rows, columns = image.shape
    height, width = out.shape
    if rows < 2 or columns < 2:
        return 0
    pixels = image.reshape(rows * columns)
    belongs = mask.reshape(rows * columns)
    below = np.uint64(columns)
    beside = np.uint64(1)
    mine = np.float32(ratio)
    theirs = np.float32(1.0 - ratio)
    zero = np.float32(0.0)
    half = np.float32(0.5)
    end_i = np.float32(columns - 1)
    end_j = np.float32(rows - 1)
    top_i = np.int32(columns - 2)
    top_j = np.int32(rows - 2)
    stride = np.int32(columns)
    di, dj = np.float32(m[0, 0]), np.float32(m[1, 0])
    shown = 0
    for y in range(height):
        i0 = m[0, 1] * y + m[0, 2]
        j0 = m[1, 1] * y + m[1, 2]
        first, last = _span(i0, m[0, 0], columns - 1.0, 0.0, width - 1.0)
        first, last = _span(j0, m[1, 0], rows - 1.0, first, last)
        if first > last:
            continue
        row = out[y]
        i0f, j0f = np.float32(i0), np.float32(j0)
        for x in range(int(np.ceil(first)), int(np.floor(last)) + 1):
            xf = np.float32(x)
            ci = min(max(i0f + xf * di, zero), end_i)
            cj = min(max(j0f + xf * dj, zero), end_j)
            if belongs[np.uint64(np.uint32(np.int32(cj + half) * stride + np.int32(ci + half)))] == 0:
                continue
            i = min(np.int32(ci), top_i)
            j = min(np.int32(cj), top_j)
            fi = ci - np.float32(i)
            fj = cj - np.float32(j)
            at = np.uint64(np.uint32(j * stride + i))
            upper = np.float32(pixels[at])
            upper += fi * (np.float32(pixels[at + beside]) - upper)
            lower = np.float32(pixels[at + below])
            lower += fi * (np.float32(pixels[at + below + beside]) - lower)
            value = mine * (upper + fj * (lower - upper)) + theirs * np.float32(row[x]) + half
            row[x] = np.uint8(np.int32(min(max(value, np.float32(1.0)), np.float32(255.0))))
            shown += 1
    return shown


_IMAGE = "Array(uint8, 2, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "ultrasound extent", _mask, (f"{_IMAGE}, Array(int32, 1, 'C'), Array(int32, 1, 'C'), Array(uint8, 2, 'C')",)
    ),
    KernelSpec(
        "ultrasound blend",
        _blend,
        (f"{_IMAGE}, {_IMAGE}, Array(float64, 2, 'C', readonly=True), float64, Array(uint8, 2, 'C')",),
    ),
)


def blend_image(
    image: NDArray[np.uint8],
    ras_from_index: NDArray[np.float64],
    ras_from_pixel: NDArray[np.float64],
    ratio: float,
    out: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None = None,
) -> int:
    """Blend an image into a pane, bilinearly; image points are projected along the pane's normal.

    Parameters
    ----------
    image : (rows, columns) uint8, C-contiguous
        At least 2 × 2; drawn between the centres of its outermost pixels.
    ras_from_index : (4, 4) float64
        Takes (i, j, 0, 1) at pixel centres to RAS mm.
    ras_from_pixel : (4, 4) float64
        Of the pane.
    ratio : float
        Share of the image, 0 to 1.
    out : (h, w) uint8
        Holds the pane's picture, changed in place.
    mask : (rows, columns) uint8, optional
        From `image_mask`, computed when not given.

    Returns
    -------
    int
        Pane pixels changed.

    Raises
    ------
    ValueError
        On a ratio outside 0 … 1 or an image that stands on edge in this pane.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"blend ratio is {ratio}, must lie in 0 … 1")
    # pane (x, y) → image (i, j): both planes are two-dimensional, so the map is a 2 × 3 affine.
    across = ras_from_pixel[:3, :2] / np.linalg.norm(ras_from_pixel[:3, :2], axis=0) ** 2
    pane_from_index = np.eye(3)
    pane_from_index[:2, :2] = across.T @ ras_from_index[:3, :2]
    pane_from_index[:2, 2] = across.T @ (ras_from_index[:3, 3] - ras_from_pixel[:3, 3])
    pitch = np.linalg.norm(ras_from_index[:3, :2], axis=0) * np.linalg.norm(across, axis=0)
    if abs(np.linalg.det(pane_from_index)) < 1e-3 * float(pitch.prod()):
        raise ValueError("the image stands on edge in this plane and cannot be blended")
    index_from_pane = np.ascontiguousarray(np.linalg.inv(pane_from_index)[:2])
    belongs = image_mask(image) if mask is None else mask
    return int(_blend(image, belongs, index_from_pane, float(ratio), out))
