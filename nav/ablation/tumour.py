"""The tumour as the live numbers need it: a sub-voxel surface, a signed distance, and samples of tumour + margin.

Made once per case from a mask (any spacing, any orientation), then only read. The surface is that of
`nav.ablation.mask_surface`, as in the margin measured afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from nav.ablation import mesh_kernels
from nav.ablation.mask_surface import MaskSurface, MaskSurfaceError
from nav.ablation.mesh_kernels import _nearest_and_winding
from nav.geometry.kernels import KernelSpec
from nav.geometry.volume import Volume

__all__ = ["KERNELS", "TumourError", "TumourModel", "thinned"]

Array = NDArray[np.float64]

#: Numbers of samples aimed at; the surface of a 24 mm tumour gets about one point per mm².
_MAX_SURFACE_POINTS = 4000
_MAX_VOLUME_POINTS = 60_000


class TumourError(ValueError):
    """A mask that holds no usable tumour; the message says why."""


#: Of the live path.
KERNELS: tuple[KernelSpec, ...] = mesh_kernels.KERNELS[:1]


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
        return math.sqrt(voxel + self.patch_sigma_mm**2)

    @property
    def patch_sigma_mm(self) -> float:
        """The part of `surface_sigma_mm` that is the patches' sagitta."""
        radius = (3000.0 * self.volume_ml / (4.0 * math.pi)) ** (1.0 / 3.0)
        return float(self.covering_radius_mm**2 / (2.0 * radius))

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


def _build(mask: Volume, margin_mm: float) -> TumourModel:
    if not (math.isfinite(margin_mm) and margin_mm > 0.0):
        raise TumourError(f"margin_mm is {margin_mm:g}, must be positive")
    try:
        surface = MaskSurface.of_mask(mask)
    except MaskSurfaceError as error:
        raise TumourError(str(error)) from None
    warnings: list[str] = []
    if surface.cut_off:
        warnings.append("the tumour touches the border of its mask: it may be cut off")
    if surface.parts > 1:
        warnings.append(
            f"the tumour mask has {surface.parts} separate parts; the margin holds for all of them together"
        )
    vertices, faces = surface.vertices, surface.faces
    points, weights, covering = _spread(vertices, faces)
    volume_points, spacing = _volume_samples(surface, margin_mm)
    return TumourModel(
        vertices=vertices,
        faces=faces,
        surface_points=np.asarray(_frozen(points), np.float64),
        surface_weights=np.asarray(_frozen(weights), np.float64),
        volume_points=np.asarray(_frozen(volume_points), np.float64),
        centroid_ras=surface.centroid_ras,
        volume_ml=surface.volume_mm3 / 1000.0,
        margin_mm=float(margin_mm),
        covering_radius_mm=covering,
        max_edge_mm=_longest_edge(vertices, faces),
        volume_spacing_mm=spacing,
        voxel_axes_mm=surface.voxel_axes_mm,
        warnings=tuple(warnings),
    )


def _longest_edge(vertices: Array, faces: NDArray[np.int32]) -> float:
    corners = vertices[faces]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max())


def _spread(vertices: Array, faces: NDArray[np.int32]) -> tuple[Array, Array, float]:
    """Thin the vertices to well-spread points; their areas; and the covering radius of the result."""
    corners = vertices[faces]
    areas = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    # Greedy thinning at distance r keeps about 0.7 / r² points per mm².
    r = math.sqrt(0.7 * float(areas.sum()) / _MAX_SURFACE_POINTS)
    points = vertices[thinned(vertices, r)]
    chosen = cKDTree(points)
    middles = corners.mean(axis=1)
    reach, owner = chosen.query(np.vstack([vertices, middles]))
    weights = np.asarray(np.bincount(owner[len(vertices) :], areas, len(points)), dtype=np.float64)
    return points, weights, float(reach.max())


def thinned(points: Array, distance_mm: float) -> NDArray[np.bool_]:
    """Which of (n, 3) points stay when, one after the other, each takes away the later ones nearer than a distance."""
    keep = np.ones(len(points), bool)
    for i, near in enumerate(cKDTree(points).query_ball_point(points, distance_mm)):
        if keep[i]:
            later = [n for n in near if n > i]
            keep[later] = False
    return keep


def _volume_samples(surface: MaskSurface, margin_mm: float) -> tuple[Array, float]:
    """Grid samples of everything inside the surface or within ``margin_mm`` of it."""
    vertices = surface.vertices
    low, high = vertices.min(axis=0) - margin_mm, vertices.max(axis=0) + margin_mm
    tree = cKDTree(vertices)
    spacing = 1.0
    for _ in range(8):
        axes = [np.arange(a, b + spacing, spacing) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        inside = surface.contains(points)
        near = tree.query(points, distance_upper_bound=margin_mm)[0] <= margin_mm
        points = points[inside | near]
        if len(points) <= _MAX_VOLUME_POINTS:
            break
        spacing *= 1.02 * (len(points) / _MAX_VOLUME_POINTS) ** (1.0 / 3.0)
    return points, spacing
