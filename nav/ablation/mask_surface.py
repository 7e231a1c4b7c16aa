"""The surface of a mask to a fraction of its voxels, and signed distances to it. Masks of any spacing and orientation.

The surface is the level set of a smoothed signed distance (shape-based interpolation: Raya & Udupa 1990, IEEE TMI 9:32)
whose level is chosen so that the enclosed volume is that of the mask's voxels: smoothing alone pulls a convex surface
inwards by about σ²/R. Stair steps ask for much smoothing, which flattens what is narrow and fills dents; so it is then
held to the voxels: each centre on its own side (as surface nets are: Gibson 1998, MICCAI, LNCS 1496:888, with a smooth
change in place of a relaxed mesh).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage import measure

from nav.ablation.mesh_kernels import _ring_distances
from nav.geometry.volume import Volume

__all__ = ["MaskSurface", "MaskSurfaceError", "border_near"]

Array = NDArray[np.float64]
Faces = NDArray[np.int32]

#: Triangles aimed at; the surface of a 24 mm tumour gets about one vertex per mm² and more.
MAX_FACES = 16_000
_MAX_GRID_POINTS = 4_000_000
#: Smoothing, and the least of it, in mean voxel edges, and the largest share of the shape's inscribed radius. Stair
#: steps of the voxels ask for much (their terraces grow with the radius), what is narrow for little.
_SMOOTHING_VOXELS, _LEAST_VOXELS, _SMOOTHING_SHARE = 3.0, 1.2, 0.5
#: Held to its voxels: changes are alike over so many mean voxel edges, rounds at most, and how far the centres of
#: voxels are to lie from the surface, in shortest edges (a quarter on average): with 0, dents and ends touch them only.
_HELD_VOXELS, _HELD_ROUNDS, _HELD_AWAY = 1.0, 40, 0.1
#: Nearest vertices whose triangles a point is measured to.
_NEAREST = 4
#: A border further than this from what is looked at is not looked for, mm.
_BORDER_REACH_MM = 25.0


class MaskSurfaceError(ValueError):
    """A mask that has no usable surface; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskSurface:
    """The surface of a mask, and the field it is the zero level of. All arrays read-only, RAS mm.

    Attributes
    ----------
    vertices : (v, 3) float64; faces : (f, 3) int32
        Triangle mesh; faces wind so that normals point outwards. Closed, unless it is of a piece (`border_near`).
    level : (k, j, i) float64
        Field on an isotropic grid along RAS: negative inside, 0 on the surface, near it about the distance.
    origin_ras : (3,) float64; pitch_mm : float
        First node of the grid, and its step.
    volume_mm3 : float
        Of the mask's voxels.
    centroid_ras : (3,) float64
        Of the mask's voxels.
    voxel_axes_mm : (3, 3) float64
        Columns: the mask's voxel edges, RAS mm.
    parts : int
        Connected pieces (faces of voxels touching).
    cut_off : bool
        The mask touches the border of its grid.
    """

    vertices: Array
    faces: Faces
    level: Array
    origin_ras: Array
    pitch_mm: float
    volume_mm3: float
    centroid_ras: Array
    voxel_axes_mm: Array
    parts: int
    cut_off: bool

    @classmethod
    def of_mask(cls, mask: Volume, *, what: str = "tumour") -> MaskSurface:
        """The surface of everything above 0 in ``mask``; ``what`` names it in errors.

        Raises
        ------
        MaskSurfaceError
            An empty mask, or one with values that are not finite.
        """
        values = np.asarray(mask.array)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise MaskSurfaceError(f"the {what} mask holds values that are not finite; expected 0 and 1")
        inside = values > 0
        if not inside.any():
            raise MaskSurfaceError(f"the {what} mask is empty: no voxel is above 0; choose another label or file")
        index = np.argwhere(inside)
        low, high = index.min(axis=0), index.max(axis=0)
        box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
        volume_mm3 = len(index) * mask.voxel_volume_mm3
        work = mask if mask.skew < 1e-3 else _straightened(mask)
        edge = float(mask.spacing_mm.mean())
        there = index if work is mask else np.argwhere(work.array)
        (vertices, faces), level, origin, pitch = _surface_field(
            work, there, volume_mm3, edge, MAX_FACES, what, voxels=work is mask
        )
        return cls(
            vertices=_frozen(vertices),
            faces=_frozen_faces(faces),
            level=_frozen(level),
            origin_ras=_frozen(origin),
            pitch_mm=pitch,
            volume_mm3=volume_mm3,
            centroid_ras=_frozen(mask.to_ras(index[:, ::-1].mean(axis=0))),
            voxel_axes_mm=_frozen(mask.ras_from_index[:3, :3]),
            parts=int(ndimage.label(inside[box])[1]),
            cut_off=bool((low == 0).any() or (high == np.array(inside.shape) - 1).any()),
        )

    def level_at(self, points_ras: ArrayLike) -> Array:
        """(n,) the field at points, (n, 3) RAS mm, by lines between nodes; inf beyond its grid."""
        at = ((np.asarray(points_ras, np.float64) - self.origin_ras) / self.pitch_mm)[:, ::-1].T
        within = (at >= 0.0).all(axis=0) & (at <= np.array(self.level.shape)[:, None] - 1).all(axis=0)
        out = np.full(at.shape[1], math.inf)
        out[within] = ndimage.map_coordinates(self.level, at[:, within], order=1)
        return out

    def contains(self, points_ras: ArrayLike) -> NDArray[np.bool_]:
        """(n,) whether points, (n, 3) RAS mm, lie inside; beyond the field's grid none does."""
        return np.asarray(self.level_at(points_ras) < 0.0)

    def signed_distance_mm(self, points_ras: ArrayLike) -> Array:
        """(n,) distance of points, (n, 3) RAS mm, to the mesh: negative inside; inf where there is no mesh.

        To the triangles around the four nearest vertices: on a mesh as fine as this one that is within 0.02 mm of the
        distance to all triangles.
        """
        points = np.asarray(points_ras, np.float64).reshape(-1, 3)
        out = self.unsigned_distance_mm(points)
        return np.asarray(np.where(self.contains(points), -out, out))

    def unsigned_distance_mm(self, points_ras: ArrayLike) -> Array:
        """As `signed_distance_mm`, without the sign and so without the field."""
        points = np.array(points_ras, np.float64, order="C").reshape(-1, 3)
        out = np.full(len(points), math.inf)
        if not len(self.faces) or not len(points):
            return out
        k = min(_NEAREST, len(self.vertices))
        nearest = cKDTree(self.vertices).query(points, k=k, workers=-1)[1].reshape(-1, k).astype(np.int64)
        corner = self.faces.ravel()
        ring = np.argsort(corner, kind="stable") // 3
        start = np.concatenate([[0], np.cumsum(np.bincount(corner, minlength=len(self.vertices)))]).astype(np.int64)
        vertices = _frozen(self.vertices)
        for array in (points, nearest, ring, start):
            array.setflags(write=False)
        _ring_distances(points, nearest, vertices, self.faces, start, ring, out)
        return np.asarray(np.sqrt(out))

    def scaled(self, factor: float) -> MaskSurface:
        """The same shape blown up by ``factor`` about its centroid."""
        c = self.centroid_ras
        return MaskSurface(
            vertices=_frozen(c + factor * (self.vertices - c)),
            faces=self.faces,
            level=_frozen(factor * self.level),
            origin_ras=_frozen(c + factor * (self.origin_ras - c)),
            pitch_mm=factor * self.pitch_mm,
            volume_mm3=factor**3 * self.volume_mm3,
            centroid_ras=c,
            voxel_axes_mm=_frozen(factor * self.voxel_axes_mm),
            parts=self.parts,
            cut_off=self.cut_off,
        )


def border_near(
    mask: Volume, low_ras: ArrayLike, high_ras: ArrayLike, tumour: MaskSurface
) -> tuple[MaskSurface, float]:
    """The surface of a large mask (an organ) around a box, RAS mm: open where the piece that is looked at ends.

    A tumour is a part of its organ, but many organ masks leave it out: ``tumour`` is added, so that its own border is
    not taken for the capsule. Also returns the share of the tumour that was not in the mask.

    Only 25 mm around the box are looked at. A mask with no border there has a surface without triangles; then the
    field alone says on which side everything is.

    Raises
    ------
    MaskSurfaceError
        An empty mask, or one that ends before the box begins.
    """
    corners = np.array(np.meshgrid(*zip(np.asarray(low_ras), np.asarray(high_ras), strict=True))).reshape(3, -1).T
    index = mask.to_index(corners)
    reach = _BORDER_REACH_MM / mask.spacing_mm
    low = np.maximum(np.floor(index.min(axis=0) - reach), 0).astype(int)
    high = np.minimum(np.ceil(index.max(axis=0) + reach) + 1, mask.size).astype(int)
    if not (np.asarray(mask.array) > 0).any():
        raise MaskSurfaceError("the organ mask is empty: no voxel is above 0; choose another label or file")
    if (high - low < 2).any():
        raise MaskSurfaceError(
            "the organ mask's image ends more than 25 mm away from tumour and ablation; do they lie in one space?"
        )
    affine = np.array(mask.ras_from_index)
    affine[:3, 3] = mask.to_ras(low)
    piece = Volume.of(
        np.asarray(mask.array)[tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))] > 0, affine
    )
    inside = np.array(piece.array)
    # A little more than the tumour, so that no seam stays between masks of different grids.
    points = piece.voxels_ras()
    level = tumour.level_at(points).reshape(inside.shape)
    own = level < 0.0
    outside = float((own & ~inside).sum() / own.sum()) if own.any() else 0.0
    inside |= level < 0.75 * float(piece.spacing_mm.mean())
    signed = _signed_distance(inside, piece.spacing_mm[::-1])
    sigma = _LEAST_VOXELS * float(piece.spacing_mm.mean())
    signed = ndimage.gaussian_filter(signed, sigma / piece.spacing_mm[::-1], mode="nearest")
    box = piece.corners_ras()
    pitch = max(1.0, float(piece.spacing_mm.min()), float((np.ptp(box, axis=0).prod() / _MAX_GRID_POINTS) ** (1 / 3)))
    grid, origin = _resampled(signed, piece, np.zeros(3), box, pitch, order=1)
    vertices, faces = np.zeros((0, 3)), np.zeros((0, 3), np.int32)
    if grid.min() < 0.0 < grid.max():
        vertices, faces = _march_bare(grid, origin, pitch)
    found = MaskSurface(
        vertices=_frozen(vertices),
        faces=_frozen_faces(faces),
        level=_frozen(grid),
        origin_ras=_frozen(origin),
        pitch_mm=pitch,
        volume_mm3=float(inside.sum()) * mask.voxel_volume_mm3,
        centroid_ras=_frozen(piece.centre_ras()),
        voxel_axes_mm=_frozen(mask.ras_from_index[:3, :3]),
        parts=1,
        cut_off=True,
    )
    return found, outside


def _frozen(array: ArrayLike) -> Array:
    out = np.array(array, dtype=np.float64, order="C")
    out.setflags(write=False)
    return out


def _frozen_faces(array: ArrayLike) -> Faces:
    out = np.array(array, dtype=np.int32, order="C")
    out.setflags(write=False)
    return out


def _signed_distance(inside: NDArray[np.bool_], sampling: Array) -> Array:
    """mm between voxel centres, negative inside; a voxel without any border gets more than the array is long."""
    far = float(np.linalg.norm(np.array(inside.shape) * sampling))
    if inside.all() or not inside.any():
        return np.full(inside.shape, -far if inside.all() else far)
    spacing = tuple(sampling)
    return np.asarray(
        ndimage.distance_transform_edt(~inside, sampling=spacing)
        - ndimage.distance_transform_edt(inside, sampling=spacing)
    )


def _held(smooth: Array, inside: NDArray[np.bool_], spacing: Array, edge_mm: float) -> Array:
    """``smooth`` with the smoothest change that leaves every voxel's centre on its own side of 0.

    The least change in the norm of a Gaussian kernel under these inequalities: projected ascent of the dual, with the
    momentum of Beck and Teboulle (FISTA, SIAM J Imaging Sci 2009, 2:183). A voxel only ever pushes towards its own
    side. The shape that the voxels were drawn from has all of them on theirs, so what smoothing flattened or filled
    comes back, and little more than that.
    """
    near = np.abs(smooth) < 3.0 * float(spacing.max()) + edge_mm
    sigma = _HELD_VOXELS * edge_mm / spacing
    aim = np.where(inside, -_HELD_AWAY, _HELD_AWAY) * float(spacing.min())
    push = ahead = np.zeros(smooth.shape)
    held = there = smooth
    pace = 1.0
    for _ in range(_HELD_ROUNDS):
        if not np.where(inside, held, -held)[near].max(initial=0.0) > 0.0:
            break
        new = np.where(near, ahead - there + aim, 0.0)
        new = np.where(inside, np.minimum(new, 0.0), np.maximum(new, 0.0))
        now = smooth + ndimage.gaussian_filter(new, sigma, mode="constant")
        faster = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * pace * pace))
        further = (pace - 1.0) / faster
        # The filter is linear: where the momentum leads to needs none of its own.
        ahead, there = new + further * (new - push), now + further * (now - held)
        push, held, pace = new, now, faster
    return held


def _straightened(mask: Volume) -> Volume:
    """Nearest-voxel copy of a sheared (gantry tilt) mask on a grid along RAS, at half its finest spacing."""
    index = np.argwhere(np.asarray(mask.array) > 0)[:, ::-1]
    pitch = 0.5 * float(mask.spacing_mm.min())
    ras = mask.to_ras(index)
    low, high = ras.min(axis=0) - mask.spacing_mm.max(), ras.max(axis=0) + mask.spacing_mm.max()
    counts = np.ceil((high - low) / pitch).astype(int) + 1
    affine = np.diag([pitch, pitch, pitch, 1.0])
    affine[:3, 3] = low
    grid = Volume.of(np.zeros(counts[::-1], np.uint8), affine)
    return Volume.of(mask.holds(grid.voxels_ras()).reshape(counts[::-1]).astype(np.uint8), affine)


def _surface_field(
    mask: Volume,
    index: NDArray[np.int64],
    volume_mm3: float,
    edge_mm: float,
    max_faces: int,
    what: str,
    *,
    voxels: bool,
) -> tuple[tuple[Array, Faces], Array, Array, float]:
    """Surface mesh, and the field it is the zero level of (negative inside) on an isotropic grid along RAS.

    ``index`` (n, 3): the voxels (k, j, i) of ``mask`` that are inside. ``voxels``: they are as they were drawn; those
    of a copy hold nothing, its stair steps are finer than the drawing.
    """
    spacing = mask.spacing_mm
    pad = np.maximum(3, np.ceil(2.0 * _SMOOTHING_VOXELS * edge_mm / spacing)).astype(int)[::-1]
    low = index.min(axis=0) - pad
    shape = index.max(axis=0) + pad + 1 - low
    local = np.zeros(shape, bool)
    local[tuple((index - low).T)] = True
    signed = _signed_distance(local, spacing[::-1])
    sigma = _LEAST_VOXELS * edge_mm
    if voxels:
        sigma = max(sigma, min(_SMOOTHING_VOXELS * edge_mm, _SMOOTHING_SHARE * -float(signed.min())))
    signed = ndimage.gaussian_filter(signed, sigma / spacing[::-1], mode="nearest")
    if voxels:
        signed -= np.partition(signed, len(index), axis=None)[len(index)]
        signed = _held(signed, local, spacing[::-1], edge_mm)

    # Isotropic grid along RAS: fine enough for the surface, coarse enough for the budgets of faces and grid points.
    equal_radius = (3.0 * volume_mm3 / (4.0 * math.pi)) ** (1.0 / 3.0)
    pitch = max(0.5, math.sqrt(2.6 * 4.0 * math.pi * equal_radius**2 / max_faces))
    pitch = min(pitch, max(0.5 * equal_radius, 0.1), max(float(spacing.min()), 0.5 * pitch))
    corners = mask.to_ras(
        np.array([[i, j, k] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1) for k in (0, shape[0] - 1)])
        + low[::-1]
    )
    extent = np.ptp(corners, axis=0)
    pitch = max(pitch, float((extent.prod() / _MAX_GRID_POINTS) ** (1.0 / 3.0)))
    for _ in range(3):
        grid, origin = _resampled(signed, mask, low[::-1], corners, pitch, order=3)
        surface, level = _surface_of_volume(grid, origin, pitch, volume_mm3, what)
        # A lobed or hollow tumour has far more surface than a ball of its volume.
        excess = len(surface[1]) / max_faces
        if excess < 1.5:
            break
        pitch *= math.sqrt(excess)
    return surface, grid - level, origin, pitch


def _resampled(
    values: Array, grid: Volume, first: ArrayLike, corners: Array, pitch: float, *, order: int
) -> tuple[Array, Array]:
    """``values``, whose first voxel is ``first`` (i, j, k) of ``grid``, on an isotropic grid along RAS; its origin.

    They are about distances, in mm: far from 0, where no surface is, they are taken by lines.
    """
    origin, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    counts = np.ceil(extent / pitch).astype(int) + 1
    k, j, i = np.indices(counts[::-1])
    ras = np.stack([i, j, k], axis=-1).reshape(-1, 3) * pitch + origin
    at = (grid.to_index(ras) - np.asarray(first))[:, ::-1].T
    out = ndimage.map_coordinates(values, at, order=1, mode="nearest")
    if order > 1:
        near = np.abs(out) < 3.0 * max(float(grid.spacing_mm.max()), pitch)
        out[near] = ndimage.map_coordinates(values, at[:, near], order=order, mode="nearest")
    return out.reshape(counts[::-1]), origin


def _surface_of_volume(
    grid: Array, origin: Array, pitch: float, volume_mm3: float, what: str
) -> tuple[tuple[Array, Faces], float]:
    """The level set of ``grid`` that encloses ``volume_mm3``, and its level: by counting, then by secant."""
    rank = min(max(round(volume_mm3 / pitch**3), 1), grid.size - 1)
    a = float(np.partition(grid, rank, axis=None)[rank])
    surface = _march(grid - a, origin, pitch, what)
    va = _mesh_volume(*surface)
    b = a + (volume_mm3 - va) / _mesh_area(*surface)
    for _ in range(6):
        surface = _march(grid - b, origin, pitch, what)
        vb = _mesh_volume(*surface)
        if abs(vb - volume_mm3) < 1e-3 * volume_mm3 or vb == va:
            break
        step = (volume_mm3 - vb) * (b - a) / (vb - va)
        a, b, va = b, b + min(max(step, -pitch), pitch), vb
    return surface, b


def _march(level: Array, origin: Array, pitch: float, what: str) -> tuple[Array, Faces]:
    """The closed surface at 0; the grid's border counts as outside."""
    padded = np.pad(level, 1, constant_values=max(float(level.max()), pitch))
    if padded.min() >= 0.0:
        raise MaskSurfaceError(f"the {what} is too small for its voxels: no surface could be found")
    ras, faces = _march_bare(padded, origin, pitch, 1.0)
    if _mesh_volume(ras, faces) < 0.0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return ras, faces


def _march_bare(level: Array, origin: Array, pitch: float, first: float = 0.0) -> tuple[Array, Faces]:
    vertices, faces, _, _ = measure.marching_cubes(  # type: ignore[no-untyped-call]
        level, 0.0, gradient_direction="ascent"
    )
    ras = (vertices[:, ::-1].astype(np.float64) - first) * pitch + origin
    return ras, np.ascontiguousarray(faces.astype(np.int32))


def _mesh_volume(vertices: Array, faces: Faces) -> float:
    p = vertices - vertices.mean(axis=0)
    return float(np.einsum("ij,ij->", p[faces[:, 0]], np.cross(p[faces[:, 1]], p[faces[:, 2]]))) / 6.0


def _mesh_area(vertices: Array, faces: Faces) -> float:
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return 0.5 * float(np.linalg.norm(normals, axis=1).sum())
