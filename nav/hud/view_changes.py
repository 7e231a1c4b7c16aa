"""How keys and mouse change the view: pure functions from one `ViewState` to the next. No Qt."""

from __future__ import annotations

from dataclasses import replace

from nav.hud.pane_frame import ViewState

__all__ = [
    "PLANES",
    "PRESETS",
    "blended",
    "blended_next",
    "moved_plane",
    "next_preset",
    "orbited",
    "panned",
    "preset_name",
    "recentred",
    "windowed",
    "zoomed",
    "zoomed_camera",
]

#: Name, window and level in HU.
PRESETS: tuple[tuple[str, float, float], ...] = (
    ("abdomen", 400.0, 40.0),
    ("liver", 150.0, 30.0),
    ("liver contrast", 300.0, 90.0),
    ("lung", 1500.0, -600.0),
    ("bone", 1800.0, 400.0),
)

PLANES = ("A", "B", "C")

MIN_MM_PER_PX, MAX_MM_PER_PX = 0.05, 1.5
MIN_WINDOW_HU, MAX_WINDOW_HU = 1.0, 4000.0
MIN_LEVEL_HU, MAX_LEVEL_HU = -1500.0, 3000.0
MAX_OFFSET_MM = 300.0

_HU_PER_PIXEL = 2.0
_DEGREES_PER_PIXEL = 0.4


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def windowed(view: ViewState, right_px: float, up_px: float) -> ViewState:
    """Left drag: to the right widens the window, upwards raises the level; all planes are linked."""
    window = _within(view.window_hu + _HU_PER_PIXEL * right_px, MIN_WINDOW_HU, MAX_WINDOW_HU)
    level = _within(view.level_hu + _HU_PER_PIXEL * up_px, MIN_LEVEL_HU, MAX_LEVEL_HU)
    return replace(view, window_hu=window, level_hu=level)


def next_preset(view: ViewState) -> ViewState:
    """The preset after the one in force; the first one when none is."""
    current = next((n for n, p in enumerate(PRESETS) if p[1:] == (view.window_hu, view.level_hu)), -1)
    _, window, level = PRESETS[(current + 1) % len(PRESETS)]
    return replace(view, window_hu=window, level_hu=level)


def preset_name(view: ViewState) -> str:
    """Name of the preset in force, empty when the person has set something else."""
    return next((p[0] for p in PRESETS if p[1:] == (view.window_hu, view.level_hu)), "")


def moved_plane(view: ViewState, pane: str, by_mm: float) -> ViewState:
    """Move one plane along its normal; the 3-D view has none."""
    if pane not in PLANES:
        return view
    offsets = dict(view.plane_offset_mm or {})
    offsets[pane] = _within(offsets.get(pane, 0.0) + by_mm, -MAX_OFFSET_MM, MAX_OFFSET_MM)
    return replace(view, plane_offset_mm=offsets)


def zoomed(view: ViewState, factor: float) -> ViewState:
    """Zoom all planes about their centre (the tip); above 1 enlarges."""
    return replace(view, mm_per_px=_within(view.mm_per_px / factor, MIN_MM_PER_PX, MAX_MM_PER_PX))


def zoomed_camera(view: ViewState, factor: float) -> ViewState:
    """Zoom the 3-D view."""
    return replace(view, camera_zoom=_within(view.camera_zoom * factor, 0.2, 10.0))


def panned(view: ViewState, pane: str, right_px: float, up_px: float) -> ViewState:
    """Drag the picture of one pane: it follows the hand, so the centre of the view moves against it."""
    pans = dict(view.pan_mm or {})
    right, up = pans.get(pane, (0.0, 0.0))
    pans[pane] = (right - right_px * view.mm_per_px, up - up_px * view.mm_per_px)
    return replace(view, pan_mm=pans)


def orbited(view: ViewState, right_px: float, up_px: float) -> ViewState:
    """Turn the 3-D view's camera."""
    azimuth = (view.camera_azimuth_deg - right_px * _DEGREES_PER_PIXEL) % 360.0
    elevation = _within(view.camera_elevation_deg - up_px * _DEGREES_PER_PIXEL, -89.0, 89.0)
    return replace(view, camera_azimuth_deg=azimuth, camera_elevation_deg=elevation)


def recentred(view: ViewState, pane: str = "") -> ViewState:
    """Take plane offsets and pans back, of one pane or (empty) of all, and the camera with pane D."""
    fresh = ViewState(sizes=view.sizes)
    if pane in PLANES:
        offsets = {k: v for k, v in (view.plane_offset_mm or {}).items() if k != pane}
        pans = {k: v for k, v in (view.pan_mm or {}).items() if k != pane}
        return replace(view, plane_offset_mm=offsets, pan_mm=pans)
    view = replace(
        view,
        camera_azimuth_deg=fresh.camera_azimuth_deg,
        camera_elevation_deg=fresh.camera_elevation_deg,
        camera_zoom=fresh.camera_zoom,
    )
    if pane == "D":
        return replace(view, pan_mm={k: v for k, v in (view.pan_mm or {}).items() if k != "D"})
    return replace(view, plane_offset_mm={}, pan_mm={}, mm_per_px=fresh.mm_per_px)


def blended(view: ViewState, by: float) -> ViewState:
    """More or less ultrasound."""
    return replace(view, ultrasound_blend=round(_within(view.ultrasound_blend + by, 0.0, 1.0), 3))


def blended_next(view: ViewState) -> ViewState:
    """Cycle the ultrasound's share: 0, 50, 100 %."""
    steps = (0.0, 0.5, 1.0)
    later = next((s for s in steps if s > view.ultrasound_blend + 1e-6), steps[0])
    return replace(view, ultrasound_blend=later)
