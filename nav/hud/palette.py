"""Colours, line styles and glyphs of the HUD. No Qt.

Overlay colours differ by at least 23.8 CIE76 under normal, protan, deutan and tritan vision, status colours by 20.6
(Machado 2009 model). Red, yellow and cyan fills stand for status only; a status is never told by colour alone: every
level has a glyph and a place. Alarm colours follow the practice of IEC 60601-1-8 (red high, yellow medium, cyan low).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "BACKGROUND",
    "BANNER_TEXT",
    "BORDER",
    "GLYPH",
    "LINES",
    "MARKER_COLOUR",
    "MUTED",
    "PANEL",
    "PLATE",
    "POSE_MARKERS",
    "POSE_STYLES",
    "STATUS",
    "TEXT",
    "Level",
    "LineLook",
]


class Level(Enum):
    """Level of a lamp, message or number, in rising urgency from OFF to HIGH."""

    OFF = "off"
    OK = "ok"
    INFO = "info"
    MEDIUM = "medium"
    HIGH = "high"


STATUS: dict[Level, str] = {
    Level.OK: "#16A34A",
    Level.MEDIUM: "#FACC15",
    Level.HIGH: "#DC2626",
    Level.INFO: "#67E8F9",
    Level.OFF: "#5B6472",
}

GLYPH: dict[Level, str] = {
    Level.OK: "\u2713",
    Level.MEDIUM: "!",
    Level.HIGH: "\u2715",
    Level.INFO: "i",
    Level.OFF: "\u2013",
}

#: Text colour that is readable on a fill of the level's colour (white on red and grey, near-black elsewhere).
BANNER_TEXT: dict[Level, str] = {
    Level.OK: "#FFFFFF",
    Level.MEDIUM: "#10141A",
    Level.HIGH: "#FFFFFF",
    Level.INFO: "#10141A",
    Level.OFF: "#FFFFFF",
}

BACKGROUND = "#0B0E13"
PANEL = "#141922"
PLATE = "#0B0E13"
BORDER = "#2A3340"
TEXT = "#E8ECF2"
MUTED = "#95A1B2"


@dataclass(frozen=True, slots=True)
class LineLook:
    """How a poly-line is drawn: ``dash`` is ``solid``, ``dash``, ``dot`` or ``dashdot``."""

    colour: str
    width_px: float
    dash: str = "solid"


#: Keys are the styles of `nav.hud.pane_frame.Polyline`.
LINES: dict[str, LineLook] = {
    "tumour": LineLook("#FF4FA3", 3.0),
    "zone": LineLook("#7FD4FF", 3.0),
    "zone_inner": LineLook("#7FD4FF", 1.6, "dash"),
    "zone_band": LineLook("#7FD4FF", 1.2, "dot"),
    "zone_grown": LineLook("#FFB05C", 2.4),
    "needle": LineLook("#FFFFFF", 3.0),
    "needle_frozen": LineLook("#FFFFFF", 1.4, "dot"),
    "projection": LineLook("#FFFFFF", 1.4, "dot"),
    "plan": LineLook("#A3E635", 2.0, "dash"),
    "candidate": LineLook("#C9D1DC", 1.2, "dot"),
    # A zone that is only planned: the same colour, thinner, and shown without a needle.
    "planned_zone": LineLook("#7FD4FF", 2.0),
    "planned_zone_inner": LineLook("#7FD4FF", 1.2, "dash"),
    "planned_zone_band": LineLook("#7FD4FF", 1.0, "dot"),
    "vessel": LineLook("#6F7BFF", 2.0),
    "risk": LineLook("#C46A00", 2.0, "dashdot"),
    "measure": LineLook("#E8ECF2", 1.6, "dash"),
    "ultrasound": LineLook("#C9D1DC", 1.4, "dash"),
}

#: Styles that rest on a live needle pose: never painted while the pose is lost.
POSE_STYLES = frozenset({"needle", "needle_lost", "zone", "zone_inner", "zone_band", "zone_grown", "projection"})

#: Markers that rest on a live pose.
POSE_MARKERS = frozenset({"tip", "worst", "stylus"})

MARKER_COLOUR: dict[str, str] = {
    "tip": "#FFFFFF",
    "target": "#C9D1DC",
    "entry": "#A3E635",
    "worst": "#FF4FA3",
    "planned_worst": "#FF4FA3",
    "landmark": "#C9D1DC",
    "stylus": "#FFFFFF",
    "crosshair": "#C9D1DC",
}
