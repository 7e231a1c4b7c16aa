"""The tumour as the live numbers need it: a sub-voxel surface, a signed distance, and samples of tumour + margin.

Made once per case from a mask (any spacing, any orientation), then only read. The surface is the level set of a
smoothed signed distance (shape-based interpolation: Raya & Udupa 1990, IEEE TMI 9:32) whose level is chosen so that the
enclosed volume is that of the mask's voxels: smoothing alone pulls a convex surface inwards by about σ²/R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage import measure

from nav.geometry.kernels import KernelSpec
from nav.geometry.volume import Volume

__all__ = ["KERNELS", "TumourError", "TumourModel"]

Array = NDArray[np.float64]

#: Numbers of samples aimed at; the surface of a 24 mm tumour gets about one point per mm².
_MAX_SURFACE_POINTS = 4000
_MAX_VOLUME_POINTS = 60_000
_MAX_FACES = 16_000
_MAX_GRID_POINTS = 4_000_000
#: Smoothing in mean voxel edges. Measured on voxelised spheres of 3 to 12 mm radius, 1 × 1 × 1 to 0.7 × 0.7 × 2.5 mm
#: voxels: the minimum margin is then 0.05 to 0.2 mm too small (with 0.7: up to 0.7 mm, stair steps of the voxels).
#: The price: bumps narrower than about two voxels are flattened.
_SMOOTHING_VOXELS = 1.2


class TumourError(ValueError):
    """A mask that holds no usable tumour; the message says why."""


@njit(nogil=True, cache=True)
def _nearest_and_winding(x, y, z, vertices, faces, max_edge):  # type: ignore[no-untyped-def]
    """Squared distance of a point to a triangle mesh without loose vertices, and the mesh's winding number about it.

    ``max_edge`` is at least the longest edge. No triangle lies nearer than the nearest vertex unless its own vertices
    are within that distance plus one edge. Outside the vertices' box the winding number is 0 without a sum.

    Point to triangle: Ericson, Real-Time Collision Detection (2005) §5.1.5. Winding number: sum of solid angles
    (van Oosterom & Strackee 1983, IEEE TBME 30:125) / 4π; ±1 inside a closed mesh, 0 outside.
    """
    best = math.inf
    solid = 0.0
    if faces.shape[0] == 0:
        return best, solid
    below_x, above_x, below_y, above_y, below_z, above_z = True, True, True, True, True, True
    for v in range(vertices.shape[0]):
        dx, dy, dz = vertices[v, 0] - x, vertices[v, 1] - y, vertices[v, 2] - z
        d = dx * dx + dy * dy + dz * dz
        if d < best:
            best = d
        below_x, above_x = below_x and dx > 0.0, above_x and dx < 0.0
        below_y, above_y = below_y and dy > 0.0, above_y and dy < 0.0
        below_z, above_z = below_z and dz > 0.0, above_z and dz < 0.0
    wind = not (below_x or above_x or below_y or above_y or below_z or above_z)
    reach = math.sqrt(best) + max_edge
    reach2 = reach * reach
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = vertices[i0, 0] - x, vertices[i0, 1] - y, vertices[i0, 2] - z
        bx, by, bz = vertices[i1, 0] - x, vertices[i1, 1] - y, vertices[i1, 2] - z
        cx, cy, cz = vertices[i2, 0] - x, vertices[i2, 1] - y, vertices[i2, 2] - z
        aa = ax * ax + ay * ay + az * az
        if wind:
            la = math.sqrt(aa)
            lb = math.sqrt(bx * bx + by * by + bz * bz)
            lc = math.sqrt(cx * cx + cy * cy + cz * cz)
            ab = ax * bx + ay * by + az * bz
            bc = bx * cx + by * cy + bz * cz
            ca = cx * ax + cy * ay + cz * az
            det = ax * (by * cz - bz * cy) - ay * (bx * cz - bz * cx) + az * (bx * cy - by * cx)
            solid += math.atan2(det, la * lb * lc + ab * lc + bc * la + ca * lb)
        if aa > reach2:
            continue
        ux, uy, uz = bx - ax, by - ay, bz - az
        vx, vy, vz = cx - ax, cy - ay, cz - az
        d1 = -(ux * ax + uy * ay + uz * az)
        d2 = -(vx * ax + vy * ay + vz * az)
        d3 = -(ux * bx + uy * by + uz * bz)
        d4 = -(vx * bx + vy * by + vz * bz)
        d5 = -(ux * cx + uy * cy + uz * cz)
        d6 = -(vx * cx + vy * cy + vz * cz)
        va = d3 * d6 - d5 * d4
        vb = d5 * d2 - d1 * d6
        vc = d1 * d4 - d3 * d2
        s = 0.0
        t = 0.0
        if d1 <= 0.0 and d2 <= 0.0:
            pass
        elif d3 >= 0.0 and d4 <= d3:
            s = 1.0
        elif vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0:
            s = d1 / (d1 - d3) if d1 != d3 else 0.0
        elif d6 >= 0.0 and d5 <= d6:
            t = 1.0
        elif vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0:
            t = d2 / (d2 - d6) if d2 != d6 else 0.0
        elif va <= 0.0 and d4 - d3 >= 0.0 and d5 - d6 >= 0.0:
            span = (d4 - d3) + (d5 - d6)
            t = (d4 - d3) / span if span > 0.0 else 0.0
            s = 1.0 - t
        else:
            total = va + vb + vc
            if total > 0.0:
                s = vb / total
                t = vc / total
        px, py, pz = ax + s * ux + t * vx, ay + s * uy + t * vy, az + s * uz + t * vz
        d = px * px + py * py + pz * pz
        if d < best:
            best = d
    return best, solid / (2.0 * math.pi)


KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "tumour: distance of a point",
        _nearest_and_winding,
        (
            "float64, float64, float64, Array(float64, 2, 'C', readonly=True), "
            "Array(int32, 2, 'C', readonly=True), float64",
        ),
    ),
)


@dataclass(frozen=True, slots=True, eq=False)
class TumourModel:
    """A tumour prepared for live use. All arrays read-only, RAS mm.

    Attributes
    ----------
    vertices : (v, 3) float64; faces : (f, 3) int32
        Closed surface mesh; faces wind so that normals point outwards.
    surface_points : (n, 3) float64
        Well-spread points on the surface, a few thousand.
    surface_weights : (n,) float64
        Area in mm² that each of them stands for; sums to the surface's area.
    volume_points : (m, 3) float64
        Regular grid of samples of tumour + ``margin_mm``, each standing for ``volume_spacing_mm``³.
    centroid_ras : (3,) float64
    volume_ml : float
        Of the mask's voxels.
    margin_mm : float
    covering_radius_mm : float
        No point of the surface lies further than this from a surface point.
    max_edge_mm : float
        Longest edge of the mesh.
    volume_spacing_mm : float
        1 mm, or coarser for a tumour so large that there would be more than 60 000 samples.
    voxel_axes_mm : (3, 3) float64
        Columns: the mask's voxel edges, RAS mm.
    warnings : tuple of str
    """

    vertices: Array
    faces: NDArray[np.int32]
    surface_points: Array
    surface_weights: Array
    volume_points: Array
    centroid_ras: Array
    volume_ml: float
    margin_mm: float
    covering_radius_mm: float
    max_edge_mm: float
    volume_spacing_mm: float
    voxel_axes_mm: Array
    warnings: tuple[str, ...] = field(default=())

    @classmethod
    def from_mask(cls, mask: Volume, *, margin_mm: float = 5.0) -> TumourModel:
        """Prepare the tumour of ``mask`` (anything above 0 is tumour).

        Raises
        ------
        TumourError
            An empty mask, or a margin that is not positive.
        """
        return _build(mask, margin_mm)

    def signed_distance_mm(self, point_ras: ArrayLike) -> float:
        """Distance of ``point_ras``, (3,) mm, to the surface mesh: negative inside, exact for the mesh."""
        x, y, z = (float(v) for v in np.asarray(point_ras, dtype=np.float64))
        squared, winding = _nearest_and_winding(x, y, z, self.vertices, self.faces, self.max_edge_mm)
        distance = math.sqrt(squared)
        return -distance if abs(winding) > 0.5 else distance

    def surface_sigma_mm(self, direction: ArrayLike) -> float:
        """1 sigma of the surface's position along a unit ``direction``, mm.

        The border lies anywhere within a voxel: a voxel's width along the direction, taken as uniform (variance
        Σ (n·v_k)²/12). To it comes the sagitta of a surface patch between sample points, ρ²/(2R), with the radius R of
        the sphere of equal volume. How well the mask was drawn is not known here and not included.
        """
        n = np.asarray(direction, dtype=np.float64)
        voxel = float(np.sum((n @ self.voxel_axes_mm) ** 2)) / 12.0
        radius = (3000.0 * self.volume_ml / (4.0 * math.pi)) ** (1.0 / 3.0)
        return math.sqrt(voxel + (self.covering_radius_mm**2 / (2.0 * radius)) ** 2)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything as arrays, for the recording; `from_arrays` gives a model with identical bits."""
        return {
            "vertices": self.vertices,
            "faces": self.faces,
            "surface_points": self.surface_points,
            "surface_weights": self.surface_weights,
            "volume_points": self.volume_points,
            "centroid_ras": self.centroid_ras,
            "voxel_axes_mm": self.voxel_axes_mm,
            "scalars": np.array(
                [
                    self.volume_ml,
                    self.margin_mm,
                    self.covering_radius_mm,
                    self.max_edge_mm,
                    self.volume_spacing_mm,
                ],
                dtype=np.float64,
            ),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> TumourModel:
        """The model written by `to_arrays` (warnings are not kept).

        Raises
        ------
        TumourError
            Missing arrays or wrong shapes.
        """
        shapes = {
            "vertices": (None, 3),
            "faces": (None, 3),
            "surface_points": (None, 3),
            "surface_weights": (None,),
            "volume_points": (None, 3),
            "centroid_ras": (3,),
            "voxel_axes_mm": (3, 3),
            "scalars": (5,),
        }
        got: dict[str, NDArray[np.generic]] = {}
        for name, shape in shapes.items():
            if name not in arrays:
                raise TumourError(f"tumour arrays: {name!r} is missing")
            have = arrays[name].shape
            if len(have) != len(shape) or any(s is not None and s != h for s, h in zip(shape, have, strict=True)):
                raise TumourError(f"tumour arrays: {name!r} has shape {have}, expected {shape}")
            got[name] = _frozen(arrays[name], np.int32 if name == "faces" else np.float64)
        volume, margin, covering, edge, spacing = (float(v) for v in np.asarray(got["scalars"], dtype=np.float64))
        return cls(
            vertices=np.asarray(got["vertices"], np.float64),
            faces=np.asarray(got["faces"], np.int32),
            surface_points=np.asarray(got["surface_points"], np.float64),
            surface_weights=np.asarray(got["surface_weights"], np.float64),
            volume_points=np.asarray(got["volume_points"], np.float64),
            centroid_ras=np.asarray(got["centroid_ras"], np.float64),
            voxel_axes_mm=np.asarray(got["voxel_axes_mm"], np.float64),
            volume_ml=volume,
            margin_mm=margin,
            covering_radius_mm=covering,
            max_edge_mm=edge,
            volume_spacing_mm=spacing,
        )


def _frozen(array: ArrayLike, dtype: type = np.float64) -> NDArray[np.generic]:
    out: NDArray[np.generic] = np.array(array, dtype=dtype, order="C")
    out.setflags(write=False)
    return out


def _straightened(mask: Volume) -> Volume:
    """Nearest-voxel copy of a sheared (gantry tilt) mask on a grid along RAS, at half its finest spacing."""
    index = np.argwhere(np.asarray(mask.array) > 0)[:, ::-1]
    pitch = 0.5 * float(mask.spacing_mm.min())
    ras = mask.to_ras(index)
    low, high = ras.min(axis=0) - mask.spacing_mm.max(), ras.max(axis=0) + mask.spacing_mm.max()
    counts = np.ceil((high - low) / pitch).astype(int) + 1
    affine = np.diag([pitch, pitch, pitch, 1.0])
    affine[:3, 3] = low
    k, j, i = np.indices(counts[::-1])
    points = np.stack([i, j, k], axis=-1).reshape(-1, 3) * pitch + low
    back = np.rint(mask.to_index(points)).astype(int)
    ok = ((back >= 0) & (back < np.array(mask.size))).all(axis=1)
    out = np.zeros(len(points), np.uint8)
    out[ok] = np.asarray(mask.array)[back[ok, 2], back[ok, 1], back[ok, 0]] > 0
    return Volume.of(out.reshape(counts[::-1]), affine)


def _build(mask: Volume, margin_mm: float) -> TumourModel:
    if not (math.isfinite(margin_mm) and margin_mm > 0.0):
        raise TumourError(f"margin_mm is {margin_mm:g}, must be positive")
    inside = np.asarray(mask.array) > 0
    if not inside.any():
        raise TumourError("the tumour mask is empty: no voxel is above 0; choose another label or file")
    warnings: list[str] = []
    index = np.argwhere(inside)
    low, high = index.min(axis=0), index.max(axis=0)
    if (low == 0).any() or (high == np.array(inside.shape) - 1).any():
        warnings.append("the tumour touches the border of its mask: it may be cut off")
    count = len(index)
    parts = int(ndimage.label(inside[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))])[1])
    if parts > 1:
        warnings.append(f"the tumour mask has {parts} separate parts; the margin holds for all of them together")
    voxel_axes = np.array(mask.ras_from_index[:3, :3])
    volume_mm3 = count * mask.voxel_volume_mm3
    work = mask if mask.skew < 1e-3 else _straightened(mask)

    smoothing_mm = _SMOOTHING_VOXELS * float(mask.spacing_mm.mean())
    surface, field_grid, origin, pitch = _surface_field(work, volume_mm3, smoothing_mm)
    vertices, faces = surface
    points, weights, covering = _spread(vertices, faces)
    volume_points, spacing = _volume_samples(vertices, field_grid, origin, pitch, margin_mm)
    return TumourModel(
        vertices=np.asarray(_frozen(vertices), np.float64),
        faces=np.asarray(_frozen(faces, np.int32), np.int32),
        surface_points=np.asarray(_frozen(points), np.float64),
        surface_weights=np.asarray(_frozen(weights), np.float64),
        volume_points=np.asarray(_frozen(volume_points), np.float64),
        centroid_ras=np.asarray(_frozen(mask.to_ras(index[:, ::-1].mean(axis=0))), np.float64),
        volume_ml=volume_mm3 / 1000.0,
        margin_mm=float(margin_mm),
        covering_radius_mm=covering,
        max_edge_mm=_longest_edge(vertices, faces),
        volume_spacing_mm=spacing,
        voxel_axes_mm=np.asarray(_frozen(voxel_axes), np.float64),
        warnings=tuple(warnings),
    )


def _surface_field(
    mask: Volume, volume_mm3: float, sigma_mm: float
) -> tuple[tuple[Array, NDArray[np.int32]], Array, Array, float]:
    """Surface mesh, and the field it is the zero level of (negative inside) on an isotropic grid along RAS."""
    spacing = mask.spacing_mm
    inside = np.asarray(mask.array) > 0
    index = np.argwhere(inside)
    pad = np.maximum(3, np.ceil(2.0 * sigma_mm / spacing)).astype(int)[::-1]
    low = index.min(axis=0) - pad
    shape = index.max(axis=0) + pad + 1 - low
    local = np.zeros(shape, bool)
    local[tuple((index - low).T)] = True
    sampling = tuple(spacing[::-1])
    signed = ndimage.distance_transform_edt(~local, sampling=sampling) - ndimage.distance_transform_edt(
        local, sampling=sampling
    )
    signed = ndimage.gaussian_filter(signed, sigma_mm / spacing[::-1], mode="nearest")

    # Isotropic grid along RAS: fine enough for the surface, coarse enough for the budgets of faces and grid points.
    equal_radius = (3.0 * volume_mm3 / (4.0 * math.pi)) ** (1.0 / 3.0)
    pitch = max(0.5, math.sqrt(2.6 * 4.0 * math.pi * equal_radius**2 / _MAX_FACES))
    pitch = min(pitch, max(0.5 * equal_radius, 0.1), max(float(spacing.min()), 0.5 * pitch))
    corners = mask.to_ras(
        np.array([[i, j, k] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1) for k in (0, shape[0] - 1)])
        + low[::-1]
    )
    origin, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    pitch = max(pitch, float((extent.prod() / _MAX_GRID_POINTS) ** (1.0 / 3.0)))
    for _ in range(3):
        counts = np.ceil(extent / pitch).astype(int) + 1
        k, j, i = np.indices(counts[::-1])
        ras = np.stack([i, j, k], axis=-1).reshape(-1, 3) * pitch + origin
        at = (mask.to_index(ras) - low[::-1])[:, ::-1].T
        grid = ndimage.map_coordinates(signed, at, order=3, mode="nearest").reshape(counts[::-1])
        surface, level = _surface_of_volume(grid, origin, pitch, volume_mm3)
        # A lobed or hollow tumour has far more surface than a ball of its volume.
        excess = len(surface[1]) / _MAX_FACES
        if excess < 1.5:
            break
        pitch *= math.sqrt(excess)
    return surface, grid - level, origin, pitch


def _surface_of_volume(
    grid: Array, origin: Array, pitch: float, volume_mm3: float
) -> tuple[tuple[Array, NDArray[np.int32]], float]:
    """The level set of ``grid`` that encloses ``volume_mm3``, and its level: by counting, then by secant."""
    rank = min(max(round(volume_mm3 / pitch**3), 1), grid.size - 1)
    a = float(np.partition(grid, rank, axis=None)[rank])
    surface = _march(grid - a, origin, pitch)
    va = _mesh_volume(*surface)
    b = a + (volume_mm3 - va) / _mesh_area(*surface)
    for _ in range(6):
        surface = _march(grid - b, origin, pitch)
        vb = _mesh_volume(*surface)
        if abs(vb - volume_mm3) < 1e-3 * volume_mm3 or vb == va:
            break
        step = (volume_mm3 - vb) * (b - a) / (vb - va)
        a, b, va = b, b + min(max(step, -pitch), pitch), vb
    return surface, b


def _march(field_grid: Array, origin: Array, pitch: float) -> tuple[Array, NDArray[np.int32]]:
    padded = np.pad(field_grid, 1, constant_values=max(float(field_grid.max()), pitch))
    if padded.min() >= 0.0:
        raise TumourError("the tumour is too small for its voxels: no surface could be found")
    vertices, faces, _, _ = measure.marching_cubes(  # type: ignore[no-untyped-call]
        padded, 0.0, gradient_direction="ascent"
    )
    ras = (vertices[:, ::-1].astype(np.float64) - 1.0) * pitch + origin
    faces = np.ascontiguousarray(faces.astype(np.int32))
    if _mesh_volume(ras, faces) < 0.0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return ras, faces


def _mesh_volume(vertices: Array, faces: NDArray[np.int32]) -> float:
    p = vertices - vertices.mean(axis=0)
    return float(np.einsum("ij,ij->", p[faces[:, 0]], np.cross(p[faces[:, 1]], p[faces[:, 2]]))) / 6.0


def _mesh_area(vertices: Array, faces: NDArray[np.int32]) -> float:
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return 0.5 * float(np.linalg.norm(normals, axis=1).sum())


def _longest_edge(vertices: Array, faces: NDArray[np.int32]) -> float:
    corners = vertices[faces]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max())


def _spread(vertices: Array, faces: NDArray[np.int32]) -> tuple[Array, Array, float]:
    """Thin the vertices to well-spread points; their areas; and the covering radius of the result."""
    corners = vertices[faces]
    areas = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    # Greedy thinning at distance r keeps about 0.7 / r² points per mm².
    r = math.sqrt(0.7 * float(areas.sum()) / _MAX_SURFACE_POINTS)
    tree = cKDTree(vertices)
    keep = np.ones(len(vertices), bool)
    for i, near in enumerate(tree.query_ball_point(vertices, r)):
        if keep[i]:
            later = [n for n in near if n > i]
            keep[later] = False
    points = vertices[keep]
    chosen = cKDTree(points)
    middles = corners.mean(axis=1)
    reach, owner = chosen.query(np.vstack([vertices, middles]))
    weights = np.asarray(np.bincount(owner[len(vertices) :], areas, len(points)), dtype=np.float64)
    return points, weights, float(reach.max())


def _volume_samples(
    vertices: Array, field_grid: Array, origin: Array, pitch: float, margin_mm: float
) -> tuple[Array, float]:
    """Grid samples of everything inside the surface or within ``margin_mm`` of it."""
    low, high = vertices.min(axis=0) - margin_mm, vertices.max(axis=0) + margin_mm
    tree = cKDTree(vertices)
    spacing = 1.0
    for _ in range(8):
        axes = [np.arange(a, b + spacing, spacing) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        at = ((points - origin) / pitch)[:, ::-1].T
        inside = ndimage.map_coordinates(field_grid, at, order=1, mode="constant", cval=1.0) < 0.0
        near = tree.query(points, distance_upper_bound=margin_mm)[0] <= margin_mm
        points = points[inside | near]
        if len(points) <= _MAX_VOLUME_POINTS:
            break
        spacing *= 1.02 * (len(points) / _MAX_VOLUME_POINTS) ** (1.0 / 3.0)
    return points, spacing
