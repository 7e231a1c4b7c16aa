"""A picture of margins on a surface: four views coloured by margin, and three planes through the worst point."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from nav.imaging.contours import Mesh, cut_mesh
from nav.imaging.planes import PlaneAxes
from nav.imaging.render3d import Camera, Surface, camera_axes, compose, rasterise

__all__ = ["margin_picture"]

Array = NDArray[np.float64]

#: Upper limits of the colour classes, mm, and their colours (RGB): ColorBrewer RdYlBu, so that red and blue stay apart
#: for colour-blind eyes. 0 and 5 mm are limits of classes.
CLASSES: tuple[tuple[float, tuple[int, int, int]], ...] = (
    (-5.0, (165, 0, 38)), (0.0, (215, 48, 39)), (2.5, (253, 174, 97)), (5.0, (254, 224, 144)),
    (7.5, (171, 217, 233)), (10.0, (116, 173, 209)), (np.inf, (69, 117, 180)),
)  # fmt: skip
_BACK = (16, 20, 27)
_VIEWS = (
    ("from the front", 0.0, 0.0),
    ("from the right", 90.0, 0.0),
    ("from behind", 180.0, 0.0),
    ("from above", 0.0, 89.0),
)
_SIZE = 300
_BAR = 70
_TUMOUR, _ABLATION, _ORGAN = (255, 255, 255), (255, 140, 0), (120, 200, 120)
_PLANES = (
    ("axial", PlaneAxes(np.array([-1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))),
    ("coronal", PlaneAxes(np.array([-1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]))),
    ("sagittal", PlaneAxes(np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0]))),
)


def margin_picture(
    vertices: Array,
    faces: NDArray[np.int32],
    margins_mm: Array,
    worst_ras: Array,
    title: str,
    ablation: tuple[Array, NDArray[np.int32]] | None = None,
    organ: tuple[Array, NDArray[np.int32]] | None = None,
) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 RGB.

    Parameters
    ----------
    vertices : (v, 3); faces : (f, 3); margins_mm : (v,)
        Tumour surface, RAS mm, and its margins; a triangle has the colour of its mean.
    worst_ras : (3,)
        Marked, and where the planes lie.
    ablation, organ : vertices and faces, optional
        Contours in the planes.
    """
    centre = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    scale = 1.15 * float(np.linalg.norm(vertices - centre, axis=1).max()) * 2.0 / _SIZE
    classes = np.searchsorted([limit for limit, _ in CLASSES], margins_mm[faces].mean(axis=1), side="right")
    whole = Surface.of(Mesh.of(vertices, faces), (0, 0, 0))
    surfaces = tuple(
        Surface(Mesh.of(vertices, faces[classes == n]), whole.normals, colour)
        for n, (_, colour) in enumerate(CLASSES)
        if (classes == n).any()
    )
    tiles = []
    for name, azimuth, elevation in _VIEWS:
        camera = Camera.of(camera_axes(azimuth, elevation), centre, _SIZE, _SIZE, scale)
        tile = np.ascontiguousarray(compose(rasterise(surfaces, camera, _BACK))[..., :3])
        x, y, _ = camera.pixel_from_ras[:3, :3] @ worst_ras + camera.pixel_from_ras[:3, 3]
        towards = float((worst_ras - centre) @ camera.axes.into)
        at = (round(float(x)), round(float(y)))
        if towards <= 0.0:
            cv2.circle(tile, at, 7, (255, 255, 255), 2, cv2.LINE_AA)
        else:
            cv2.circle(tile, at, 7, (130, 130, 130), 1, cv2.LINE_AA)
        tiles.append(_named(tile, name))
    shown = vertices if ablation is None or not len(ablation[0]) else np.vstack([vertices, ablation[0]])
    reach = 1.1 * float(np.abs(shown - worst_ras).max()) * 2.0 / _SIZE
    for name, axes in _PLANES:
        tiles.append(_named(_plane(axes, reach, (vertices, faces), worst_ras, ablation, organ), name))
    tiles.append(_legend())
    body = np.vstack([np.hstack(tiles[:4]), np.hstack(tiles[4:])])
    bar = np.full((_BAR // 2, body.shape[1], 3), _BACK, np.uint8)
    cv2.putText(bar, _plain(title), (8, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([bar, body])


def _plane(
    axes: PlaneAxes,
    scale: float,
    tumour: tuple[Array, NDArray[np.int32]],
    worst_ras: Array,
    ablation: tuple[Array, NDArray[np.int32]] | None,
    organ: tuple[Array, NDArray[np.int32]] | None,
) -> NDArray[np.uint8]:
    # A plane through an outermost point would only touch the tumour: it is drawn in towards the middle.
    along = (tumour[0] - worst_ras) @ axes.into
    inset = 0.15 * float(np.ptp(along))
    depth = min(max(0.0, float(along.min()) + inset), float(along.max()) - inset)
    camera = Camera.of(axes, worst_ras + depth * axes.into, _SIZE, _SIZE, scale)
    tile = np.full((_SIZE, _SIZE, 3), _BACK, np.uint8)
    for mesh, colour in ((organ, _ORGAN), (ablation, _ABLATION), (tumour, _TUMOUR)):
        if mesh is None or not len(mesh[1]):
            continue
        lines = cut_mesh(Mesh.of(*mesh), camera.pixel_from_ras)
        segments = np.rint(lines[:, :2] * 16.0).astype(np.int32).reshape(-1, 2, 2)
        cv2.polylines(tile, list(segments), False, colour, 1, cv2.LINE_AA, shift=4)
    cv2.circle(tile, (_SIZE // 2, _SIZE // 2), 5, (255, 255, 255), 1, cv2.LINE_AA)
    length = round(10.0 / scale)
    cv2.line(tile, (10, _SIZE - 12), (10 + length, _SIZE - 12), (235, 235, 235), 2)
    return _worded(tile, "10 mm", (14 + length, _SIZE - 8))


def _legend() -> NDArray[np.uint8]:
    tile = np.full((_SIZE, _SIZE, 3), _BACK, np.uint8)
    below = None
    for n, (limit, colour) in enumerate(CLASSES):
        y = 24 + 24 * n
        cv2.rectangle(tile, (14, y - 12), (44, y + 6), colour, -1)
        words = (
            f"below {limit:g} mm"
            if below is None
            else f"{below:g} mm and more"
            if np.isinf(limit)
            else f"{below:g} to {limit:g} mm"
        )
        _worded(tile, words, (54, y + 2))
        below = limit
    for n, (words, colour) in enumerate((("tumour", _TUMOUR), ("ablation", _ABLATION), ("organ", _ORGAN))):
        y = 208 + 22 * n
        cv2.line(tile, (14, y - 4), (44, y - 4), colour, 2)
        _worded(tile, words, (54, y))
    cv2.circle(tile, (29, 276), 7, (255, 255, 255), 2, cv2.LINE_AA)
    return _worded(tile, "worst point (grey: hidden)", (54, 280))


def _worded(tile: NDArray[np.uint8], words: str, at: tuple[int, int]) -> NDArray[np.uint8]:
    cv2.putText(tile, words, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
    return tile


def _named(tile: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    return _worded(tile, name, (8, 18))


def _plain(text: str) -> str:
    """OpenCV's letters are ASCII."""
    return text.replace("±", "+/-").replace("≥", ">=").encode("ascii", "replace").decode()
