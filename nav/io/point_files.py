"""Point lists of other programs: Slicer markups, elastix/transformix text, legacy VTK points; all to RAS mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nav.geometry.volume import Volume
from nav.io.errors import PointFileError
from nav.io.image_file import swap_lps_ras
from nav.io.markups import read_markups

__all__ = ["read_points"]


def read_points(path: Path | str, image: Volume | None = None) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Labels and (n, 3) positions, RAS mm.

    ``.mrk.json`` and ``.fcsv`` say their own coordinate system. elastix text (``point`` or ``index``, the count, one
    point a line) and legacy ASCII VTK (``POINTS n type``) are in ITK's LPS mm; their points are labelled 1, 2, 3 …

    Parameters
    ----------
    path : path
    image : Volume, optional
        What the indices of an elastix ``index`` file belong to.

    Raises
    ------
    PointFileError
        Absent, of no known kind, broken off, not finite, or indices without ``image``.
    MarkupsError
        A markups file that cannot be used.
    """
    file = Path(path)
    if file.name.lower().endswith((".json", ".fcsv")):
        marks = read_markups(file).landmarks
        if not marks:
            raise PointFileError(f"{file}: holds no points")
        return tuple(m.name for m in marks), np.array([m.ras for m in marks], np.float64)
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise PointFileError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PointFileError(f"{file}: is not text; binary VTK files are not read, write it as ASCII") from None
    if words[:1] and words[0].lower() in ("point", "index"):
        points = _numbers(file, words[1:], 0)
        if words[0].lower() == "index":
            if image is None:
                raise PointFileError(f"{file}: holds indices, and it is not known of which image")
            ras = image.to_ras(points)
        else:
            ras = swap_lps_ras(points)
    elif words[:2] == ["#", "vtk"]:
        # The title may hold the word too; the keyword is followed by the count.
        places = [n for n, word in enumerate(words[:-1]) if word.upper() == "POINTS" and words[n + 1].isdigit()]
        if not places:
            raise PointFileError(f"{file}: is a VTK file without POINTS; binary ones are not read, write it as ASCII")
        ras = swap_lps_ras(_numbers(file, words[places[0] + 1 :], 1))
    else:
        start = " ".join(words[:3])[:40] or "nothing"
        raise PointFileError(
            f"{file}: begins with {start!r}; expected Slicer markups (.mrk.json, .fcsv), elastix points "
            "('point' or 'index') or legacy ASCII VTK"
        )
    return tuple(str(n + 1) for n in range(len(ras))), ras


def _numbers(file: Path, words: list[str], between: int) -> NDArray[np.float64]:
    """(n, 3) after the count n and ``between`` more words."""
    try:
        count = int(words[0])
        values = [float(word) for word in words[1 + between : 1 + between + 3 * count]]
    except (IndexError, ValueError) as error:
        raise PointFileError(f"{file}: is damaged ({error})") from None
    if count < 1 or len(values) != 3 * count:
        raise PointFileError(f"{file}: announces {count} points and holds {len(values) / 3:.4g}; copy it again")
    points = np.array(values).reshape(count, 3)
    if not np.isfinite(points).all():
        raise PointFileError(f"{file}: point {int(np.argmax(~np.isfinite(points).all(axis=1))) + 1} is not finite")
    return points
