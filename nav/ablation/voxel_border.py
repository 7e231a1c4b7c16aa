"""Margins between border voxels, as QAM measures them (Sandu et al. 2021): for comparison with published numbers only.

Biased low: both borders lie half a voxel inside their surface or more, and distances join voxel centres. Spheres of 10
and 16 mm (true margin 6 mm) give 5.10 mm in 1 mm voxels and 4.00 mm in 0.8 × 0.8 × 5 mm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from nav.ablation.mask_margin import MarginShares
from nav.ablation.mask_surface import MaskSurfaceError
from nav.geometry.volume import Volume

__all__ = ["VoxelBorderMargin", "voxel_border_margin"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class VoxelBorderMargin:
    """``points_ras`` (n, 3): centres of the tumour's border voxels in the ablation's space; ``margins_mm`` (n,).

    The shares count voxels.
    """

    points_ras: Array
    margins_mm: Array
    whole: MarginShares
    free: MarginShares | None
    excluded_fraction: float


def _border(mask: Volume, what: str) -> Array:
    """(n, 3) RAS mm: centres of the voxels that a 6-connected erosion takes off."""
    inside = np.asarray(mask.array) > 0
    boxes = ndimage.find_objects(inside.view(np.uint8))
    if not boxes or boxes[0] is None:
        raise MaskSurfaceError(f"the {what} mask is empty: no voxel is above 0; choose another label or file")
    # A border of the image is no border of the structure's neighbours: what lies beyond counts as outside.
    local = np.pad(inside[boxes[0]], 1)
    edge = np.argwhere(local & ~ndimage.binary_erosion(local)) - 1
    return mask.to_ras((edge + [s.start for s in boxes[0]])[:, ::-1])


def _signed(points: Array, mask: Volume, border: Array) -> Array:
    away = cKDTree(border).query(points)[0]
    return np.asarray(np.where(mask.holds(points), away, -away))


def _counted(margins: Array) -> MarginShares:
    lt0, lt5 = float((margins < 0.0).mean()), float((margins < 5.0).mean())
    return MarginShares(float(margins.min()), lt0, lt5 - lt0, 1.0 - lt5)


def voxel_border_margin(
    tumour: Volume,
    ablation: Volume,
    *,
    organ: Volume | None = None,
    moved: Callable[[Array], Array] | None = None,
    capsule_mm: float = 5.0,
) -> VoxelBorderMargin:
    """Signed distance of the tumour's border voxels to the ablation's, positive inside the ablation.

    Grids may differ: the distances are taken between voxel centres in RAS mm. On one grid they are those of a distance
    transform of the ablation's border.

    Raises
    ------
    MaskSurfaceError
        An empty mask.
    ValueError
        A mapping that does not reach all of the tumour.
    """
    at_home = _border(tumour, "tumour")
    points = at_home if moved is None else moved(at_home)
    if not np.isfinite(points).all():
        raise ValueError("the transform's field does not reach the whole tumour; register with one that covers it")
    margins = _signed(points, ablation, _border(ablation, "ablation"))
    free, excluded = None, 0.0
    if organ is not None:
        kept = _signed(at_home, organ, _border(organ, "organ")) >= capsule_mm
        excluded = 1.0 - float(kept.mean())
        free = _counted(margins[kept]) if kept.any() else None
    return VoxelBorderMargin(points, margins, _counted(margins), free, excluded)
