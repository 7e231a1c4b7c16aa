"""Does an image that its own header places lie where the patient is? Told by the known points of the case."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nav.guidance.health import StreamFinding

__all__ = ["misplaced"]

#: So many known points are needed to judge. Fewer of them inside than the first share is odd; at least the second
#: share must be inside once a mistake is undone.
POINTS = 3
FEW, MOST = 0.6, 0.9


def misplaced(
    ras_from_index: NDArray[np.float64], columns_rows: tuple[int, int], points_ras: NDArray[np.float64]
) -> StreamFinding | None:
    """Whether the case's points fall outside a slice's field of view, and within it after a usual mistake is undone.

    The points lie in the body, and a slice through the body shows its whole width; their distance from the slice does
    not matter.

    Parameters
    ----------
    ras_from_index : (4, 4) float64
        (i, j, k, 1) at voxel centres to RAS mm, as placed.
    columns_rows : (int, int)
        Number of voxels along i and j.
    points_ras : (n, 3) float64
        Landmarks, target and entry, RAS mm.

    Returns
    -------
    StreamFinding or None
        ``image_misplaced``: None when most points are inside, or too few are known, or no usual mistake explains it.
    """
    if len(points_ras) < POINTS:
        return None
    m = ras_from_index
    now = _share_inside(m, columns_rows, points_ras)
    if now >= FEW:
        return None
    half = (np.array([*columns_rows, 1], dtype=np.float64) - 1.0) / 2.0
    shift = m[:3, :3] @ half
    candidates = (
        ("its position is a corner taken for the centre", "Set origin_is_corner = true", _moved(m, shift)),
        ("its position is the centre taken for a corner", "Remove origin_is_corner", _moved(m, -shift)),
        ("RAS and LPS are exchanged", "Correct coordinate_override", np.diag([-1.0, -1.0, 1.0, 1.0]) @ m),
    )
    for what, to_do, corrected in candidates:
        share = _share_inside(corrected, columns_rows, points_ras)
        if share >= MOST:
            return StreamFinding(
                "image_misplaced",
                f"the patient lies beside this image, but inside if {what}",
                f"{now:.0%} of {len(points_ras)} points of the case inside, {share:.0%} then",
                f"at least {FEW:.0%}",
                f"{to_do}; check the outline against the CT",
            )
    return None


def _moved(m: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
    out = m.copy()
    out[:3, 3] += shift
    return out


def _share_inside(m: NDArray[np.float64], columns_rows: tuple[int, int], points_ras: NDArray[np.float64]) -> float:
    """Share of the points whose projection onto the slice lies within its edges."""
    index, *_ = np.linalg.lstsq(m[:3, :2], (points_ras - m[:3, 3]).T, rcond=None)
    i, j = index
    columns, rows = columns_rows
    inside = (i >= -0.5) & (i <= columns - 0.5) & (j >= -0.5) & (j <= rows - 0.5)
    return float(inside.mean())
