"""Surfaces of masks as triangle meshes in RAS (marching cubes on an isotropic grid)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nav.geometry.volume import Volume
from nav.imaging.contours import Mesh

__all__ = ["MAX_VESSEL_TRIANGLES", "mask_surface", "sphere_mesh"]

MAX_VESSEL_TRIANGLES = 50_000

#: Standard deviation of the smoothing, in samples of the grid the surface is taken on.
SMOOTHING_SAMPLES = 0.7

#: Empty voxels put around the mask, so that smoothing does not meet the border.
MARGIN_VOXELS = 3


def mask_surface(mask: Volume, max_triangles: int, finest_mm: float = 0.8, *, shape_based: bool = True) -> Mesh | None:
    """The surface of a 0/1 mask.

    The mask is cropped, turned into a smooth field, brought to an isotropic grid and cut by marching cubes. The field
    is the signed distance to the mask's border (shape-based interpolation, Raya and Udupa 1990), which neither steps
    between thick slices nor shrinks; or, ``shape_based=False``, the blurred mask itself, several times faster and good
    enough for a large vessel tree. The pitch starts at the mask's finest spacing (at least ``finest_mm``) and is
    coarsened until the limit holds. A structure so small that the grid would miss it is taken on the mask's own grid.

    Parameters
    ----------
    mask : Volume
        Anything but 0 is inside.
    max_triangles : int
        Upper limit, at least 100.
    finest_mm : float
        Finest pitch of the grid.
    shape_based : bool

    Returns
    -------
    Mesh or None
        None when the mask is empty.

    Raises
    ------
    ValueError
        On a limit below 100, or one that cannot be met.
    """
    if max_triangles < 100:
        raise ValueError(f"surface limited to {max_triangles} triangles, at least 100 are needed")
    filled = np.asarray(mask.array != 0)
    boxes = ndimage.find_objects(filled.view(np.uint8))
    if not boxes or boxes[0] is None:
        return None
    box = boxes[0]
    inside = np.pad(filled[box], MARGIN_VOXELS)
    corner = np.array([s.start - MARGIN_VOXELS for s in box], dtype=np.float64)  # (k, j, i) of inside[0, 0, 0]
    spacing = mask.spacing_mm[::-1]
    field = _signed_distance(inside, spacing) if shape_based else inside.astype(np.float32) - np.float32(0.5)
    pitch = max(float(spacing.min()), finest_mm)
    for _ in range(12):
        # A distance field is smoothed by what its new grid can hold; a mask also across its own voxels.
        step = pitch / spacing
        sigma = SMOOTHING_SAMPLES * (step if shape_based else np.maximum(step, 1.0))
        vertices, triangles = _surface_at(field, step, sigma)
        if len(triangles) <= max_triangles:
            break
        pitch *= max(1.08, float(np.sqrt(len(triangles) / max_triangles)) * 1.02)
    else:
        raise ValueError(f"surface of {len(triangles)} triangles could not be brought below {max_triangles}")
    ras = mask.to_ras((vertices + corner)[:, ::-1])
    # Which way marching cubes winds depends on the handedness of (k, j, i) and of the affine; the volume's sign tells.
    mesh = Mesh.of(ras, triangles)
    return mesh if mesh.volume_mm3 > 0.0 else Mesh.of(ras, triangles[:, ::-1])


def _signed_distance(inside: NDArray[np.bool_], spacing: NDArray[np.float64]) -> NDArray[np.float32]:
    """Distance in mm, positive inside; 0 lies midway between the centres of an inner and an outer voxel."""
    within = ndimage.distance_transform_edt(inside, sampling=spacing)
    outside = ndimage.distance_transform_edt(~inside, sampling=spacing)
    return np.asarray(within - outside, dtype=np.float32)


def _surface_at(
    field: NDArray[np.float32], step: NDArray[np.float64], sigma: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The zero level of a field smoothed by ``sigma`` and sampled every ``step`` (both in its samples).

    Returns vertices in (k, j, i) of ``field``, and triangles.
    """
    from skimage.measure import marching_cubes

    shape = np.maximum(np.ceil((np.array(field.shape) - 1) / step).astype(int) + 1, 2)
    blurred = ndimage.gaussian_filter(field, sigma, mode="nearest")
    grid = ndimage.affine_transform(blurred, step, output_shape=tuple(shape), order=1, mode="nearest")
    if grid.max() <= 0.0:
        grid, step = field, np.ones(3)
    vertices, triangles, _, _ = marching_cubes(grid, 0.0, allow_degenerate=False)  # type: ignore[no-untyped-call]
    return vertices.astype(np.float64) * step, triangles.astype(np.int32)


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
