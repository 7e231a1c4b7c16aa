"""Software 3-D view: no OpenGL, deterministic, runs without the GIL in the render worker.

Orthographic. Static surfaces are rasterised once per camera change into colour and depth; each frame adds the needle
and the planned path (thin opaque capsules) and the translucent zone, whose front and back are found analytically per
pixel and put in the right order with everything opaque. One headlight: brightness is |normal · viewing direction|, so
the winding of a mesh does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nav.geometry.kernels import KernelSpec
from nav.imaging.contours import Mesh
from nav.imaging.planes import PlaneAxes, pixel_from_ras, plane_matrix

__all__ = ["KERNELS", "Camera", "Capsule", "Ellipsoid", "StaticView", "Surface", "camera_axes", "compose", "rasterise"]

#: Depth of a pixel that shows nothing, mm.
FAR = np.float32(np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A mesh with its colour and vertex normals ((n, 3) float64, unit length, read-only)."""

    mesh: Mesh
    normals: NDArray[np.float64]
    colour: tuple[int, int, int]

    @classmethod
    def of(cls, mesh: Mesh, colour: tuple[int, int, int]) -> Surface:
        """Normals as the area-weighted mean of the adjoining triangles."""
        a, b, c = (mesh.vertices[mesh.triangles[:, n]] for n in range(3))
        face = np.cross(b - a, c - a)
        normals = np.zeros_like(mesh.vertices)
        for corner in range(3):
            for axis in range(3):
                normals[:, axis] += np.bincount(
                    mesh.triangles[:, corner], weights=face[:, axis], minlength=len(normals)
                )
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals /= np.where(length > 0.0, length, 1.0)
        normals.setflags(write=False)
        return cls(mesh, normals, colour)


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """An orthographic camera: ``ras_from_pixel`` as in `nav.imaging.planes`, and the picture's size."""

    axes: PlaneAxes
    ras_from_pixel: NDArray[np.float64]
    pixel_from_ras: NDArray[np.float64]
    width: int
    height: int
    mm_per_px: float

    @classmethod
    def of(cls, axes: PlaneAxes, centre_ras: ArrayLike, width: int, height: int, mm_per_px: float) -> Camera:
        """A camera whose middle shows ``centre_ras``."""
        m = plane_matrix(axes, centre_ras, width, height, mm_per_px)
        return cls(axes, m, pixel_from_ras(m), width, height, mm_per_px)


def camera_axes(azimuth_deg: float, elevation_deg: float) -> PlaneAxes:
    """Screen axes of an orbiting camera; 0, 0 looks from the front (patient's left on the right of the picture).

    Parameters
    ----------
    azimuth_deg : float
        Camera moves towards the patient's right.
    elevation_deg : float
        Camera moves towards the head; limited to ±89°, so that "up" stays defined.
    """
    azimuth = np.deg2rad(azimuth_deg)
    elevation = np.deg2rad(min(max(elevation_deg, -89.0), 89.0))
    viewer = np.array([np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation)])
    right = np.array([-np.cos(azimuth), np.sin(azimuth), 0.0])
    return PlaneAxes(right, np.cross(viewer, right))


@dataclass(frozen=True, slots=True, eq=False)
class StaticView:
    """Rasterised surfaces: ``colour`` (h, w, 4) uint8 RGBA, ``depth`` (h, w) float32 mm (inf: nothing)."""

    camera: Camera
    colour: NDArray[np.uint8]
    depth: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Capsule:
    """A thin opaque rod between two RAS points; ``dash_mm`` above 0: drawn in dashes of that length."""

    start_ras: NDArray[np.float64]
    end_ras: NDArray[np.float64]
    radius_mm: float
    colour: tuple[int, int, int]
    dash_mm: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Ellipsoid:
    """A translucent ellipsoid of revolution, RAS mm."""

    centre_ras: NDArray[np.float64]
    axis_ras: NDArray[np.float64]
    semi_long_mm: float
    semi_short_mm: float
    colour: tuple[int, int, int]


@njit(nogil=True, cache=True, error_model="numpy")
def _raster(vertices, normals, triangles, pixel_from_ras, into, red, green, blue, work, colour, depth):  # type: ignore[no-untyped-def]
    height, width = depth.shape
    m = pixel_from_ras
    for n in range(vertices.shape[0]):
        x, y, z = vertices[n, 0], vertices[n, 1], vertices[n, 2]
        work[n, 0] = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
        work[n, 1] = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
        work[n, 2] = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        work[n, 3] = abs(normals[n, 0] * into[0] + normals[n, 1] * into[1] + normals[n, 2] * into[2])
    for n in range(triangles.shape[0]):
        a, b, c = triangles[n, 0], triangles[n, 1], triangles[n, 2]
        ax, ay = work[a, 0], work[a, 1]
        bx, by = work[b, 0], work[b, 1]
        cx, cy = work[c, 0], work[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        x_first = max(int(np.ceil(min(ax, bx, cx))), 0)
        x_last = min(int(np.floor(max(ax, bx, cx))), width - 1)
        y_first = max(int(np.ceil(min(ay, by, cy))), 0)
        y_last = min(int(np.floor(max(ay, by, cy))), height - 1)
        inverse = 1.0 / area
        for y in range(y_first, y_last + 1):
            for x in range(x_first, x_last + 1):
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) * inverse
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) * inverse
                wc = 1.0 - wa - wb
                if wa < -1e-9 or wb < -1e-9 or wc < -1e-9:
                    continue
                z = np.float32(wa * work[a, 2] + wb * work[b, 2] + wc * work[c, 2])
                if z < depth[y, x]:
                    depth[y, x] = z
                    light = 0.25 + 0.75 * min(wa * work[a, 3] + wb * work[b, 3] + wc * work[c, 3], 1.0)
                    colour[y, x, 0] = np.uint8(int(red * light))
                    colour[y, x, 1] = np.uint8(int(green * light))
                    colour[y, x, 2] = np.uint8(int(blue * light))
                    colour[y, x, 3] = 255


@njit(nogil=True, cache=True, error_model="numpy")
def _capsule(start, end, radius_mm, mm_per_px, dash_mm, red, green, blue, colour, depth):  # type: ignore[no-untyped-def]
    """``start``, ``end``: x px, y px, depth mm. The silhouette is exact; the depth is that of a thin rod."""
    height, width = depth.shape
    radius = radius_mm / mm_per_px
    x0, y0, z0 = start[0], start[1], start[2]
    dx, dy, dz = end[0] - x0, end[1] - y0, end[2] - z0
    flat = dx * dx + dy * dy
    length_mm = np.sqrt(flat * mm_per_px * mm_per_px + dz * dz)
    x_first = max(int(np.ceil(min(x0, x0 + dx) - radius)), 0)
    x_last = min(int(np.floor(max(x0, x0 + dx) + radius)), width - 1)
    y_first = max(int(np.ceil(min(y0, y0 + dy) - radius)), 0)
    y_last = min(int(np.floor(max(y0, y0 + dy) + radius)), height - 1)
    for y in range(y_first, y_last + 1):
        for x in range(x_first, x_last + 1):
            if flat > 1e-6:
                t = min(max(((x - x0) * dx + (y - y0) * dy) / flat, 0.0), 1.0)
            else:  # seen end on: the nearer end is in front
                t = 0.0 if dz >= 0.0 else 1.0
            ex, ey = x - (x0 + t * dx), y - (y0 + t * dy)
            off = ex * ex + ey * ey
            if off > radius * radius:
                continue
            if dash_mm > 0.0 and int(t * length_mm / dash_mm) % 2 == 1:
                continue
            bulge = np.sqrt(max(radius * radius - off, 0.0))
            z = np.float32(z0 + t * dz - bulge * mm_per_px)
            if z < depth[y, x]:
                depth[y, x] = z
                light = 0.25 + 0.75 * bulge / radius
                colour[y, x, 0] = np.uint8(int(red * light))
                colour[y, x, 1] = np.uint8(int(green * light))
                colour[y, x, 2] = np.uint8(int(blue * light))
                colour[y, x, 3] = 255


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _layer(colour, y, x, facing, red, green, blue):  # type: ignore[no-untyped-def]
    """Blend one translucent layer over a pixel: faint where it faces the viewer, denser at the rim."""
    alpha = 0.22 + 0.38 * (1.0 - facing) * (1.0 - facing)
    light = 0.55 + 0.45 * facing
    keep = 1.0 - alpha
    colour[y, x, 0] = np.uint8(int(colour[y, x, 0] * keep + red * light * alpha + 0.5))
    colour[y, x, 1] = np.uint8(int(colour[y, x, 1] * keep + green * light * alpha + 0.5))
    colour[y, x, 2] = np.uint8(int(colour[y, x, 2] * keep + blue * light * alpha + 0.5))
    colour[y, x, 3] = 255


@njit(nogil=True, cache=True, error_model="numpy")
def _ellipsoid(sphere_from_pixel, box, red, green, blue, colour, depth):  # type: ignore[no-untyped-def]
    """``sphere_from_pixel`` (3, 4): (x px, y px, depth mm, 1) to the space where the ellipsoid is the unit sphere."""
    m = sphere_from_pixel
    a = m[0, 2] * m[0, 2] + m[1, 2] * m[1, 2] + m[2, 2] * m[2, 2]
    length = np.sqrt(a)
    for y in range(box[1], box[3] + 1):
        for x in range(box[0], box[2] + 1):
            q0 = m[0, 0] * x + m[0, 1] * y + m[0, 3]
            q1 = m[1, 0] * x + m[1, 1] * y + m[1, 3]
            q2 = m[2, 0] * x + m[2, 1] * y + m[2, 3]
            b = q0 * m[0, 2] + q1 * m[1, 2] + q2 * m[2, 2]
            inside = b * b - a * (q0 * q0 + q1 * q1 + q2 * q2 - 1.0)
            if inside <= 0.0:
                continue
            root = np.sqrt(inside)
            # |q · w| / |w| on the unit sphere: how much the layer faces the viewer (rim 0, middle 1).
            facing = min(root / length, 1.0)
            if (-b + root) / a < depth[y, x]:
                _layer(colour, y, x, facing, red, green, blue)
            if (-b - root) / a < depth[y, x]:
                _layer(colour, y, x, facing, red, green, blue)


_F2 = "Array(float64, 2, 'C', readonly=True)"
_F1 = "Array(float64, 1, 'C', readonly=True)"
_RGBA = "Array(uint8, 3, 'C'), Array(float32, 2, 'C')"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "3-D surfaces",
        _raster,
        (
            f"{_F2}, {_F2}, Array(int32, 2, 'C', readonly=True), {_F2}, {_F1}, float64, float64, float64, "
            f"Array(float64, 2, 'C'), {_RGBA}",
        ),
    ),
    KernelSpec(
        "3-D needle",
        _capsule,
        (f"{_F1}, {_F1}, float64, float64, float64, float64, float64, float64, {_RGBA}",),
    ),
    KernelSpec(
        "3-D zone",
        _ellipsoid,
        (f"{_F2}, Array(int64, 1, 'C', readonly=True), float64, float64, float64, {_RGBA}",),
    ),
)


def rasterise(
    surfaces: tuple[Surface, ...], camera: Camera, background: tuple[int, int, int] = (16, 20, 27)
) -> StaticView:
    """Rasterise opaque surfaces; done once per camera change."""
    colour = np.empty((camera.height, camera.width, 4), np.uint8)
    colour[:] = (*background, 255)
    depth = np.full((camera.height, camera.width), FAR, np.float32)
    into = np.ascontiguousarray(camera.axes.into)
    for surface in surfaces:
        red, green, blue = (float(c) for c in surface.colour)
        work = np.empty((len(surface.mesh.vertices), 4))
        _raster(
            surface.mesh.vertices, surface.normals, surface.mesh.triangles, camera.pixel_from_ras, into,
            red, green, blue, work, colour, depth,
        )  # fmt: skip
    colour.setflags(write=False)
    depth.setflags(write=False)
    return StaticView(camera, colour, depth)


def compose(
    static: StaticView,
    capsules: tuple[Capsule, ...] = (),
    ellipsoids: tuple[Ellipsoid, ...] = (),
    veils: tuple[Surface, ...] = (),
) -> NDArray[np.uint8]:
    """One frame: a fresh (h, w, 4) uint8 RGBA picture of the static view, the capsules and the zones on top.

    Capsules are opaque and hide one another by depth. Ellipsoids are drawn in the order given, each with its back
    before its front; that is right for one zone and for nested ones given from the inside out. Veils are meshes of
    which only the nearest layer is drawn, translucent, from the inside out, too.
    """
    camera = static.camera
    colour = static.colour.copy()
    depth = static.depth.copy()
    m = camera.pixel_from_ras
    for capsule in capsules:
        start = m[:3, :3] @ capsule.start_ras + m[:3, 3]
        end = m[:3, :3] @ capsule.end_ras + m[:3, 3]
        red, green, blue = (float(c) for c in capsule.colour)
        radius = max(capsule.radius_mm, 0.8 * camera.mm_per_px)
        _capsule(start, end, radius, camera.mm_per_px, capsule.dash_mm, red, green, blue, colour, depth)
    for ellipsoid in ellipsoids:
        _draw_ellipsoid(ellipsoid, camera, colour, depth)
    for veil in veils:
        _draw_veil(veil, camera, colour, depth)
    return colour


def _draw_veil(veil: Surface, camera: Camera, colour: NDArray[np.uint8], depth: NDArray[np.float32]) -> None:
    """Rasterise a mesh by itself, over its own rectangle, and blend it in where nothing opaque is nearer."""
    pixels = veil.mesh.vertices @ camera.pixel_from_ras[:3, :3].T + camera.pixel_from_ras[:3, 3]
    low = np.maximum(np.floor(pixels[:, :2].min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(pixels[:, :2].max(axis=0)).astype(int) + 1, (camera.width, camera.height))
    if (high <= low).any():
        return
    width, height = (int(n) for n in high - low)
    shifted = camera.pixel_from_ras.copy()
    shifted[:2, 3] -= low
    light = np.zeros((height, width, 4), np.uint8)
    nearest = np.full((height, width), FAR, np.float32)
    work = np.empty((len(veil.mesh.vertices), 4))
    _raster(
        veil.mesh.vertices, veil.normals, veil.mesh.triangles, shifted, np.ascontiguousarray(camera.axes.into),
        255.0, 255.0, 255.0, work, light, nearest,
    )  # fmt: skip
    at = np.nonzero(nearest < depth[low[1] : high[1], low[0] : high[0]])
    # The same look as that of an ellipsoid: faint where it faces the viewer, denser at the rim.
    facing = np.clip((light[at][:, :1] / 255.0 - 0.25) / 0.75, 0.0, 1.0)
    share = 0.3 + 0.45 * (1.0 - facing) ** 2
    region = colour[low[1] : high[1], low[0] : high[0]]
    shown = np.array(veil.colour) * (0.55 + 0.45 * facing)
    region[at[0], at[1], :3] = np.rint(region[at][:, :3] * (1.0 - share) + shown * share).astype(np.uint8)


def _draw_ellipsoid(zone: Ellipsoid, camera: Camera, colour: NDArray[np.uint8], depth: NDArray[np.float32]) -> None:
    axis = zone.axis_ras / np.linalg.norm(zone.axis_ras)
    along = np.outer(axis, axis)
    to_sphere = (np.eye(3) - along) / zone.semi_short_mm + along / zone.semi_long_mm
    m = np.empty((3, 4))
    m[:, :3] = to_sphere @ camera.ras_from_pixel[:3, :3]
    m[:, 3] = to_sphere @ (camera.ras_from_pixel[:3, 3] - zone.centre_ras)
    # Half widths of the silhouette: the support of the ellipsoid along the screen axes.
    x, y, _ = camera.pixel_from_ras[:3, :3] @ zone.centre_ras + camera.pixel_from_ras[:3, 3]
    from_sphere = (np.eye(3) - along) * zone.semi_short_mm + along * zone.semi_long_mm
    half_x = float(np.linalg.norm(from_sphere @ camera.axes.right)) / camera.mm_per_px
    half_y = float(np.linalg.norm(from_sphere @ camera.axes.up)) / camera.mm_per_px
    box = np.array(
        [
            max(np.ceil(x - half_x), 0), max(np.ceil(y - half_y), 0),
            min(np.floor(x + half_x), camera.width - 1), min(np.floor(y + half_y), camera.height - 1),
        ],
        dtype=np.int64,
    )  # fmt: skip
    red, green, blue = (float(c) for c in zone.colour)
    _ellipsoid(np.ascontiguousarray(m), box, red, green, blue, colour, depth)
