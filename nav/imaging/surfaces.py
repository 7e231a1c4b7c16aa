"""Surfaces of masks as triangle meshes in RAS (marching cubes on a smoothed, isotropically resampled mask)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nav.geometry.volume import Volume
from nav.imaging.contours import Mesh

__all__ = ["MAX_TUMOUR_TRIANGLES", "MAX_VESSEL_TRIANGLES", "mask_surface", "sphere_mesh"]

MAX_TUMOUR_TRIANGLES = 10_000
MAX_VESSEL_TRIANGLES = 50_000

#: Standard deviation of the smoothing, in samples of the grid the surface is taken on.
SMOOTHING_SAMPLES = 0.7

#: Empty voxels put around the mask, so that smoothing does not meet the border.
MARGIN_VOXELS = 3


def mask_surface(mask: Volume, max_triangles: int, finest_mm: float = 0.8) -> Mesh | None:
    """The surface of a 0/1 mask.

    The mask is cropped, brought to an isotropic grid and smoothed by a Gaussian of `SMOOTHING_SAMPLES`; the surface is
    its 0.5 level. The pitch starts at the mask's finest spacing (at least ``finest_mm``) and is coarsened until the
    limit holds. A structure so small that smoothing would swallow it is taken as it is.

    Parameters
    ----------
    mask : Volume
        Anything above 0 is inside.
    max_triangles : int
        Upper limit, at least 100.
    finest_mm : float
        Finest pitch of the grid.

    Returns
    -------
    Mesh or None
        None when the mask is empty.
    """
    if max_triangles < 100:
        raise ValueError(f"surface limited to {max_triangles} triangles, at least 100 are needed")
    boxes = ndimage.find_objects((mask.array > 0).astype(np.uint8))
    if not boxes or boxes[0] is None:
        return None
    box = boxes[0]
    inside = np.pad((mask.array[box] > 0).astype(np.float32), MARGIN_VOXELS)
    corner = np.array([s.start - MARGIN_VOXELS for s in box], dtype=np.float64)  # (k, j, i) of inside[0, 0, 0]
    spacing = mask.spacing_mm[::-1]
    pitch = max(float(spacing.min()), finest_mm)
    for _ in range(12):
        vertices, triangles = _surface_at(inside, spacing, pitch)
        if len(triangles) <= max_triangles:
            break
        pitch *= max(1.08, float(np.sqrt(len(triangles) / max_triangles)) * 1.02)
    else:
        raise ValueError(f"surface of {len(triangles)} triangles could not be brought below {max_triangles}")
    index = (vertices + corner)[:, ::-1]
    ras = mask.to_ras(index)
    # Marching cubes winds for a right-handed (k, j, i); the reversal to (i, j, k) mirrors once, the affine perhaps too.
    mesh = Mesh.of(ras, triangles)
    return mesh if mesh.volume_mm3 > 0.0 else Mesh.of(ras, triangles[:, ::-1])


def _surface_at(
    inside: NDArray[np.float32], spacing: NDArray[np.float64], pitch: float
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vertices in (k, j, i) of ``inside``, and triangles, on a grid of ``pitch`` mm."""
    from skimage.measure import marching_cubes

    step = np.maximum(pitch / spacing, 1e-6)
    shape = np.maximum(np.ceil((np.array(inside.shape) - 1) / step).astype(int) + 1, 2)
    # The anti-alias blur of a coarser grid, so that thin vessels fade out instead of breaking into aliased beads.
    blurred = ndimage.gaussian_filter(inside, SMOOTHING_SAMPLES * np.maximum(step, 1.0), mode="constant")
    field = ndimage.affine_transform(blurred, step, output_shape=tuple(shape), order=1, mode="constant")
    if field.max() <= 0.55:
        blurred = inside
        field = ndimage.affine_transform(inside, step, output_shape=tuple(shape), order=1, mode="constant")
        if field.max() <= 0.5:
            field, step = inside, np.ones(3)
    field = np.pad(field, 1)
    vertices, triangles, _, _ = marching_cubes(field, 0.5, allow_degenerate=False)
    return (vertices.astype(np.float64) - 1.0) * step, triangles.astype(np.int32)


def sphere_mesh(centre_ras: NDArray[np.float64], radius_mm: float, subdivisions: int = 3) -> Mesh:
    """A geodesic sphere (an octahedron, each face split ``4 ** subdivisions`` times)."""
    vertices = [np.array(v, float) for v in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}
        finer: list[tuple[int, int, int]] = []
        for face in faces:
            mids = []
            for a, b in ((0, 1), (1, 2), (2, 0)):
                key = (min(face[a], face[b]), max(face[a], face[b]))
                if key not in middle:
                    point = vertices[key[0]] + vertices[key[1]]
                    middle[key] = len(vertices)
                    vertices.append(point / np.linalg.norm(point))
                mids.append(middle[key])
            ab, bc, ca = mids
            finer += [(face[0], ab, ca), (ab, face[1], bc), (ca, bc, face[2]), (ab, bc, ca)]
        faces = finer
    return Mesh.of(np.array(vertices) * radius_mm + np.asarray(centre_ras), np.array(faces, dtype=np.int32))
