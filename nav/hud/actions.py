"""Every action of the window: its name, keys, and words. One table for keys, buttons, foot switch and help."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACTIONS", "MOUSE_HELP", "Action", "action_for_key"]


@dataclass(frozen=True, slots=True)
class Action:
    """``keys`` in Qt's portable spelling; ``button`` is the short text of the tool rail (empty: none there)."""

    name: str
    keys: tuple[str, ...]
    text: str
    button: str = ""
    group: str = ""


ACTIONS: tuple[Action, ...] = (
    Action("layout_plan", ("F1",), "Layout: plan and set-up", "PLAN", "Layout"),
    Action("layout_guide", ("F2",), "Layout: guide", "GUIDE", "Layout"),
    Action("layout_ultrasound", ("F3",), "Layout: ultrasound", "US VIEW", "Layout"),
    Action("pane_A", ("1",), "Maximise pane A", "", "Layout"),
    Action("pane_B", ("2",), "Maximise pane B", "", "Layout"),
    Action("pane_C", ("3",), "Maximise pane C", "", "Layout"),
    Action("pane_D", ("4",), "Maximise pane D (3-D)", "", "Layout"),
    Action("grid", ("Esc",), "Back to 2 x 2", "2 x 2", "Layout"),
    Action("freeze", ("F",), "Freeze or run the pictures", "FREEZE", "View"),
    Action("recentre", ("Home",), "Recentre all panes", "CENTRE", "View"),
    Action("centre_toggle", ("P",), "Plane C at the tip or at the target", "TIP / TGT", "View"),
    Action("hide_overlays", ("O",), "Hide overlays while held", "HIDE", "View"),
    Action("next_target", ("T",), "Next target of the plan", "TARGET", "Guidance"),
    Action("next_needle", ("N",), "Next needle", "", "Guidance"),
    Action("zone", ("A",), "Ablation zone on or off", "ZONE", "View"),
    Action("ultrasound", ("U",), "Ultrasound 0 / 50 / 100 %", "US MIX", "View"),
    Action("blend_less", ("[",), "Less ultrasound", "", "View"),
    Action("blend_more", ("]",), "More ultrasound", "", "View"),
    Action("window_preset", ("W",), "Next window/level preset", "W / L", "View"),
    Action("crosshair", ("C",), "Crosshair: a click places it", "CROSS", "View"),
    Action("measure", ("M",), "Measure: two clicks", "MEASURE", "View"),
    Action("collect", ("L", "Return", "Enter"), "Collect the active landmark", "", "Set-up"),
    Action("ablation", ("G",), "Ablation: power on; power off (press twice)", "ABLATE", "Guidance"),
    Action("breath_hold", ("B",), "Breath is held / free", "BREATH", "Guidance"),
    Action("record", ("R",), "Finish the recording (press twice)", "RECORD", "Record"),
    Action("screenshot", ("S",), "Screenshot with metadata", "PICTURE", "Record"),
    Action("acknowledge", ("Space",), "Acknowledge alarms", "", "Guidance"),
    Action("connect", ("K",), "Connect to lost devices now", "", "Record"),
    Action("full_screen", ("F11",), "Full screen", "FULL", "Window"),
    Action("help", ("?", "Shift+?"), "This help", "HELP ?", "Window"),
)

MOUSE_HELP: tuple[tuple[str, str], ...] = (
    ("Left drag", "window (right: wider) and level (up: higher), all planes; 3-D: orbit"),
    ("Wheel", "move the plane 1 mm along its normal (Shift: 5 mm); 3-D: zoom"),
    ("Ctrl + wheel", "zoom about the centre"),
    ("Right drag", "zoom"),
    ("Middle drag", "pan"),
    ("Double click", "maximise the pane and back; 3-D while maximised: reset the camera with Home"),
    ("Hover", "CT number and position (RAS mm)"),
)

_BY_KEY = {key: action for action in ACTIONS for key in action.keys}


def action_for_key(key: str) -> Action | None:
    """The action of a key in Qt's portable spelling, None when it has none."""
    return _BY_KEY.get(key)
