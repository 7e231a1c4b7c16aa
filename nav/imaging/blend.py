"""A tracked image (ultrasound) warped into a pane's pixel grid and blended there at 1:1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nav.geometry.kernels import KernelSpec
from nav.imaging.planes import PlaneAxes

__all__ = ["KERNELS", "ImagePlane", "blend_image", "grey_plane", "image_extent", "image_plane", "plane_difference"]


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
def _extent(image, row_first, row_last, column_first, column_last):  # type: ignore[no-untyped-def]
    height, width = image.shape
    for y in range(height):
        row_first[y] = width
        row_last[y] = -1
    for x in range(width):
        column_first[x] = height
        column_last[x] = -1
    for y in range(height):
        for x in range(width):
            if image[y, x] > 0:
                if row_first[y] > x:
                    row_first[y] = x
                row_last[y] = x
                if column_first[x] > y:
                    column_first[x] = y
                column_last[x] = y


def image_extent(image: NDArray[np.uint8]) -> tuple[NDArray[np.int32], ...]:
    """First and last lit pixel of every row and of every column, four int32 arrays.

    A pixel between both the ends of its row and those of its column belongs to the picture. For a sector (fan) image
    that is the sector, black vessels and shadows included, and not the black corners around it.
    """
    height, width = image.shape
    bounds = (
        np.empty(height, np.int32),
        np.empty(height, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
    )
    _extent(image, *bounds)
    return bounds


@njit(nogil=True, cache=True, error_model="numpy")
def _blend(image, m, row_first, row_last, column_first, column_last, ratio, out):  # type: ignore[no-untyped-def]
    rows, columns = image.shape
    height, width = out.shape
    mine = np.float32(ratio)
    theirs = np.float32(1.0 - ratio)
    shown = 0
    for y in range(height):
        for x in range(width):
            ci = m[0, 0] * x + m[0, 1] * y + m[0, 2]
            cj = m[1, 0] * x + m[1, 1] * y + m[1, 2]
            if not (-0.5 <= ci <= columns - 0.5 and -0.5 <= cj <= rows - 0.5):
                continue
            ni = min(max(int(ci + 0.5), 0), columns - 1)
            nj = min(max(int(cj + 0.5), 0), rows - 1)
            if ni < row_first[nj] or ni > row_last[nj] or nj < column_first[ni] or nj > column_last[ni]:
                continue
            ci = min(max(ci, 0.0), columns - 1.0)
            cj = min(max(cj, 0.0), rows - 1.0)
            i = min(int(ci), max(columns - 2, 0))
            j = min(int(cj), max(rows - 2, 0))
            i1 = min(i + 1, columns - 1)
            j1 = min(j + 1, rows - 1)
            fi = np.float32(ci - i)
            fj = np.float32(cj - j)
            upper = np.float32(image[j, i]) + fi * (np.float32(image[j, i1]) - np.float32(image[j, i]))
            lower = np.float32(image[j1, i]) + fi * (np.float32(image[j1, i1]) - np.float32(image[j1, i]))
            value = mine * (upper + fj * (lower - upper)) + theirs * np.float32(out[y, x])
            out[y, x] = np.uint8(np.int32(min(max(value + np.float32(0.5), np.float32(1.0)), np.float32(255.0))))
            shown += 1
    return shown


_IMAGE = "Array(uint8, 2, 'C', readonly=True)"
_ENDS = "Array(int32, 1, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec("ultrasound extent", _extent, (f"{_IMAGE}, " + ", ".join(["Array(int32, 1, 'C')"] * 4),)),
    KernelSpec(
        "ultrasound blend",
        _blend,
        (
            f"{_IMAGE}, Array(float64, 2, 'C', readonly=True), {_ENDS}, {_ENDS}, {_ENDS}, {_ENDS}, float64, "
            "Array(uint8, 2, 'C')",
        ),
    ),
)


def blend_image(
    image: NDArray[np.uint8],
    ras_from_index: NDArray[np.float64],
    ras_from_pixel: NDArray[np.float64],
    ratio: float,
    out: NDArray[np.uint8],
    extent: tuple[NDArray[np.int32], ...] | None = None,
) -> int:
    """Blend an image into a pane, bilinearly; image points are projected along the pane's normal.

    Parameters
    ----------
    image : (rows, columns) uint8, C-contiguous
    ras_from_index : (4, 4) float64
        Takes (i, j, 0, 1) at pixel centres to RAS mm.
    ras_from_pixel : (4, 4) float64
        Of the pane.
    ratio : float
        Share of the image, 0 to 1.
    out : (h, w) uint8
        Holds the pane's picture, changed in place.
    extent : from `image_extent`, optional
        Computed when not given.

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
    row_first, row_last, column_first, column_last = image_extent(image) if extent is None else extent
    return int(_blend(image, index_from_pane, row_first, row_last, column_first, column_last, float(ratio), out))
