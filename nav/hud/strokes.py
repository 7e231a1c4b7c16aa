"""Poly-lines as separate short strokes, dashes included. No Qt.

Qt's raster engine takes five times as long for a wide closed outline as for the same outline as single segments, and it
counts dashes anew for every paint of a line and of its halo. Cut once per picture, a dash costs as much as a line.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nav.hud import palette
from nav.hud.pane_frame import Polyline

__all__ = ["DASHES_PX", "dashed", "strokes"]

#: Lengths of stroke and gap in turn, px.
DASHES_PX: dict[str, tuple[float, ...]] = {
    "dash": (10.0, 6.0),
    "dot": (2.0, 4.0),
    "dashdot": (12.0, 5.0, 3.0, 5.0),
}

#: More dashes than this are not drawn (a line that leaves the picture by far).
MAX_DASHES = 400


def strokes(line: Polyline) -> NDArray[np.float64]:
    """(2 m, 2) pane pixels: every two points are one stroke of ``line`` in its style's dashes."""
    points = np.asarray(line.points, dtype=np.float64)
    if line.segments:
        return points
    if line.closed:
        points = np.concatenate([points, points[:1]])
    pattern = DASHES_PX.get(palette.LINES[line.style].dash)
    if pattern is not None:
        return dashed(points, pattern)
    return np.repeat(points, 2, axis=0)[1:-1]


def dashed(points: NDArray[np.float64], pattern: tuple[float, ...]) -> NDArray[np.float64]:
    """(2 m, 2) strokes along an open poly-line (n, 2); a stroke is bent once in its middle where the line is bent."""
    steps = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    length = float(along[-1])
    period = float(sum(pattern))
    if length <= 0.0:
        return np.empty((0, 2))
    count = min(int(np.ceil(length / period)), MAX_DASHES)
    offsets = np.concatenate([[0.0], np.cumsum(pattern)])
    starts = (np.arange(count)[:, None] * period + offsets[:-1:2]).ravel()
    ends = (np.arange(count)[:, None] * period + offsets[1::2]).ravel()
    keep = starts < length
    starts, ends = starts[keep], np.minimum(ends[keep], length)
    middles = (starts + ends) / 2.0
    at = np.column_stack([starts, middles, middles, ends]).ravel()
    return np.column_stack([np.interp(at, along, points[:, 0]), np.interp(at, along, points[:, 1])])
