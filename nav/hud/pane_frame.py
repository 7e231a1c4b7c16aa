"""What the render worker hands to a pane: pixels and overlay geometry in pane pixels. No Qt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Marker", "PaneFrame", "Polyline", "ViewState"]


@dataclass(frozen=True, slots=True, eq=False)
class Polyline:
    """Line segments or a poly-line in pane pixels.

    ``style`` is a key of the palette: ``tumour``, ``zone``, ``zone_inner``, ``zone_band`` (the zone's surface lies
    between them with 90 %), ``zone_grown`` (killed already), ``needle``, ``needle_lost``, ``plan``, ``candidate``,
    ``planned_zone`` (and ``_inner``, ``_band``: at the plan's target, needs no pose), ``vessel``, ``risk``,
    ``projection``, ``ultrasound`` (trace of the image plane). ``points`` is (n, 2) float64 x, y
    in pane pixels, integers at pixel centres (a painter that counts from corners adds 0.5); with
    ``segments`` every two points are one segment (n even), otherwise they are joined in order.
    """

    style: str
    points: NDArray[np.float64]
    segments: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Marker:
    """A symbol in pane pixels.

    ``style``: ``tip``, ``target``, ``entry``, ``worst``, ``planned_worst``, ``landmark``, ``stylus``, ``crosshair``.
    """

    style: str
    x: float
    y: float
    radius_px: float = 6.0
    label: str = ""


@dataclass(frozen=True, slots=True)
class ViewState:
    """What the person has set; changed on the Qt thread, read by the render worker as one frozen value.

    Attributes
    ----------
    sizes : dict
        Pane key (``A``, ``B``, ``C``, ``D``) → (width, height) in device pixels.
    window_hu, level_hu : float
    mm_per_px : float
        Of the planes A to C.
    plane_offset_mm : dict
        Pane key → offset of the plane along its normal.
    pan_mm : dict
        Pane key → (right, up) shift of the view's centre.
    centre : str
        ``tip`` or ``target``: what pane C cuts through.
    """

    sizes: dict[str, tuple[int, int]]
    window_hu: float = 400.0
    level_hu: float = 40.0
    mm_per_px: float = 0.27
    plane_offset_mm: dict[str, float] | None = None
    pan_mm: dict[str, tuple[float, float]] | None = None
    centre: str = "tip"
    layout: str = "guide"
    maximised: str = ""
    show_zone: bool = True
    show_overlays: bool = True
    ultrasound_blend: float = 0.5
    camera_azimuth_deg: float = 30.0
    camera_elevation_deg: float = 20.0
    camera_zoom: float = 1.0
    crosshair_ras: tuple[float, float, float] | None = None
    frozen: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class PaneFrame:
    """One picture of one pane.

    Attributes
    ----------
    key : str
        ``A``, ``B`` (along the needle), ``C`` (probe's eye), ``D`` (3-D).
    image : (h, w) uint8 or (h, w, 4) uint8 RGBA
        Never written again once handed over.
    snapshot_sequence, arrival_ns : int
        The snapshot it shows, and the arrival of the newest pose in it (0: no pose shown).
    ras_from_pixel : (4, 4) float64 or None
        Takes (x, y, 0, 1) pane pixels to RAS mm; None for the 3-D view.
    letters : dict
        ``left``, ``right``, ``top``, ``bottom`` → orientation letters.
    """

    key: str
    image: NDArray[np.uint8]
    snapshot_sequence: int
    arrival_ns: int
    polylines: tuple[Polyline, ...] = ()
    markers: tuple[Marker, ...] = ()
    ras_from_pixel: NDArray[np.float64] | None = None
    mm_per_px: float = 0.0
    letters: dict[str, str] | None = None
    title: str = ""
    plane_offset_mm: float = 0.0
    ultrasound_shown: bool = False
    ultrasound_age_ms: float = 0.0
