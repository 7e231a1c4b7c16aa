"""What keys, buttons and mouse do: every action of the table, applied to the view or sent as an operator event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PySide6.QtCore import QObject, Qt, Signal

from nav.hud import view_changes as change
from nav.hud.overlay import Measure
from nav.hud.pane_frame import ViewState
from nav.hud.panes_view import PaneView
from nav.hud.session import HudSession
from nav.runtime.events import (
    AcknowledgeAlarm,
    BreathHold,
    CollectLandmark,
    Point,
    SetPlan,
    StartAblation,
    StopAblation,
)

__all__ = ["Controller"]

_NOTICE_NS = 4_000_000_000


class Controller(QObject):
    """Holds what the person has set besides the `ViewState`: freezing, crosshair mode, measuring, acknowledgements.

    Signals ``layout_changed``, ``screenshot_wanted``, ``full_screen_wanted`` and ``help_wanted`` are the window's own
    business; everything else ends in the session.
    """

    layout_changed = Signal()
    screenshot_wanted = Signal()
    full_screen_wanted = Signal()
    help_wanted = Signal()
    crosshair_placed = Signal()

    def __init__(self, session: HudSession, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.session = session
        self.frozen_since_ns: int | None = None
        self.crosshair_on = False
        self.measuring = False
        self.measure: Measure | None = None
        self.acknowledged: frozenset[str] = frozenset()
        self.standing: frozenset[str] = frozenset()
        self._notice = ""
        self._notice_until_ns = 0
        self._finish_until_ns = 0
        self._end_until_ns = 0
        self._handlers: dict[str, Callable[[], None]] = {
            "layout_plan": lambda: self._layout("plan"),
            "layout_guide": lambda: self._layout("guide"),
            "layout_ultrasound": lambda: self._layout("ultrasound"),
            "pane_A": lambda: self.maximise("A"),
            "pane_B": lambda: self.maximise("B"),
            "pane_C": lambda: self.maximise("C"),
            "pane_D": lambda: self.maximise("D"),
            "grid": self._grid,
            "freeze": self._freeze,
            "recentre": lambda: self.change_view(change.recentred),
            "centre_toggle": self._centre,
            "hide_overlays": lambda: self.change_view(lambda v: replace(v, show_overlays=False)),
            "next_target": self._next_target,
            "next_needle": lambda: self.notice(f"One needle in this room: {session.needle_name()}"),
            "zone": lambda: self.change_view(lambda v: replace(v, show_zone=not v.show_zone)),
            "ultrasound": self._ultrasound,
            "blend_less": lambda: self.change_view(lambda v: change.blended(v, -0.1)),
            "blend_more": lambda: self.change_view(lambda v: change.blended(v, 0.1)),
            "window_preset": self._preset,
            "crosshair": self._crosshair,
            "measure": self._measure,
            "collect": lambda: session.submit(CollectLandmark()),
            "breath_hold": self._breath,
            "ablation": self._ablation,
            "record": self._record,
            "screenshot": self.screenshot_wanted.emit,
            "connect": self._connect,
            "acknowledge": self.acknowledge,
            "full_screen": self.full_screen_wanted.emit,
            "help": self.help_wanted.emit,
        }

    # -- actions -------------------------------------------------------------------------------------------------

    def trigger(self, name: str) -> None:
        """Do an action by name; `KeyError` for an unknown one."""
        self._handlers[name]()

    def release(self, name: str) -> None:
        """End an action that lasts while its key or button is held."""
        if name == "hide_overlays":
            self.change_view(lambda v: replace(v, show_overlays=True))

    def change_view(self, make: Callable[[ViewState], ViewState]) -> None:
        """Replace the view in force."""
        old = self.session.view()
        new = make(old)
        if new != old:
            self.session.set_view(new)

    def notice(self, text: str) -> None:
        """Say something in the message line for a few seconds, below any alarm."""
        self._notice = text
        self._notice_until_ns = self.session.clock_now_ns() + _NOTICE_NS

    def notice_now(self, now_ns: int) -> str:
        """The notice, until its time is over."""
        return self._notice if now_ns < self._notice_until_ns else ""

    def acknowledge(self) -> None:
        """Acknowledge every alarm that stands; it stays visible, but does not flash any more."""
        self.acknowledged = self.standing
        self.session.submit(AcknowledgeAlarm())

    def maximise(self, key: str) -> None:
        """Give a pane the whole grid, or take it back."""
        self.change_view(lambda v: replace(v, maximised="" if v.maximised == key else key))
        self.layout_changed.emit()

    def _layout(self, layout: str) -> None:
        self.change_view(lambda v: replace(v, layout=layout, maximised=""))
        self.layout_changed.emit()

    def _grid(self) -> None:
        self.change_view(lambda v: replace(v, maximised=""))
        self.measuring, self.measure = False, None
        self.layout_changed.emit()

    def _freeze(self) -> None:
        frozen = self.frozen_since_ns is None
        self.frozen_since_ns = self.session.clock_now_ns() if frozen else None
        self.change_view(lambda v: replace(v, frozen=frozen))

    def _centre(self) -> None:
        self.change_view(lambda v: replace(v, centre="target" if v.centre == "tip" else "tip"))
        self.notice(f"Plane C at the {self.session.view().centre}")

    def _ultrasound(self) -> None:
        self.change_view(change.blended_next)
        self.notice(f"Ultrasound {100 * self.session.view().ultrasound_blend:.0f} %")

    def _preset(self) -> None:
        self.change_view(change.next_preset)
        view = self.session.view()
        self.notice(f"Window/level: {change.preset_name(view)} {view.window_hu:.0f} / {view.level_hu:.0f}")

    def _crosshair(self) -> None:
        self.crosshair_on = not self.crosshair_on
        if self.crosshair_on:
            self.measuring, self.measure = False, None
            self.notice("Crosshair: click in a plane to place it; target and entry are set in the set-up panel")
        else:
            self.change_view(lambda v: replace(v, crosshair_ras=None))

    def _measure(self) -> None:
        self.measuring = not self.measuring
        self.measure = None
        if self.measuring:
            self.crosshair_on = False
            self.notice("Measure: click the first point, then the second")

    def _breath(self) -> None:
        snapshot = self.session.latest_snapshot()
        self.session.submit(BreathHold(held=not (snapshot is not None and snapshot.breath_hold is True)))

    def _ablation(self) -> None:
        """Follow the power: on at once, off asked twice, because its timer cannot be taken up again."""
        snapshot = self.session.latest_snapshot()
        now_ns = self.session.clock_now_ns()
        if snapshot is None or snapshot.ablation is None or not snapshot.ablation.running:
            self.session.submit(StartAblation())
            self.notice("Ablation: the timer runs. This program does not switch the generator")
        elif now_ns < self._end_until_ns:
            self._end_until_ns = 0
            self.session.submit(StopAblation())
            self.notice("Ablation: ended")
        else:
            self._end_until_ns = now_ns + _NOTICE_NS
            self.notice("Is the power off? Press G again to end the ablation")

    def _connect(self) -> None:
        self.session.connect_now()
        self.notice("Connecting to every device whose connection is lost")

    def _record(self) -> None:
        """Finish the recording, asked twice: another one can be begun over the network only."""
        snapshot = self.session.latest_snapshot()
        now_ns = self.session.clock_now_ns()
        if snapshot is None or not snapshot.recording:
            self.notice("Nothing is recorded now; a recording runs from the start of a session")
        elif now_ns < self._finish_until_ns:
            self._finish_until_ns = 0
            self.session.finish_recording()
            self.notice("Recording finished")
        else:
            self._finish_until_ns = now_ns + _NOTICE_NS
            self.notice("Finish the recording? Press R again")

    def _next_target(self) -> None:
        case = self.session.case_info()
        paths = case.paths if case is not None else ()
        if not paths:
            self.notice("The case has no planned paths; load a plan or set a target")
            return
        snapshot = self.session.latest_snapshot()
        target = None if snapshot is None or snapshot.target_ras is None else tuple(map(float, snapshot.target_ras))
        current = next((n for n, p in enumerate(paths) if p.target_ras == target), -1)
        path = paths[(current + 1) % len(paths)]
        self.session.submit(SetPlan(path.target_ras, path.entry_ras, path.name))
        self.notice(f"Target: {path.name}")

    # -- mouse ---------------------------------------------------------------------------------------------------

    def dragged(self, pane: str, buttons: Qt.MouseButton, right_px: float, up_px: float) -> None:
        """Left: window and level (3-D: orbit); middle: pan; right: zoom."""
        if buttons & Qt.MouseButton.LeftButton:
            if pane == "D":
                self.change_view(lambda v: change.orbited(v, right_px, up_px))
            else:
                self.change_view(lambda v: change.windowed(v, right_px, up_px))
        elif buttons & Qt.MouseButton.MiddleButton:
            self.change_view(lambda v: change.panned(v, pane, right_px, up_px))
        elif buttons & Qt.MouseButton.RightButton:
            factor = 1.01**up_px
            zoom = change.zoomed_camera if pane == "D" else change.zoomed
            self.change_view(lambda v: zoom(v, factor))

    def scrolled(self, pane: str, notches: float, modifiers: Qt.KeyboardModifier) -> None:
        """Wheel: away from the person moves the plane away from the viewer, 1 mm a notch (Shift: 5 mm)."""
        if pane == "D":
            self.change_view(lambda v: change.zoomed_camera(v, 1.1**notches))
        elif modifiers & Qt.KeyboardModifier.ControlModifier:
            self.change_view(lambda v: change.zoomed(v, 1.1**notches))
        else:
            step = 5.0 if modifiers & Qt.KeyboardModifier.ShiftModifier else 1.0
            self.change_view(lambda v: change.moved_plane(v, pane, step * notches))

    def clicked(self, view: PaneView, x: float, y: float) -> None:
        """A click moves the crosshair or sets a measuring point, and only in those modes; never the target."""
        ras = view.ras_at(x, y)
        if ras is None:
            return
        if self.measuring:
            if self.measure is None or self.measure.end is not None or self.measure.pane != view.key:
                self.measure = Measure(view.key, ras)
            else:
                self.measure = replace(self.measure, end=ras)
        elif self.crosshair_on:
            self.place_crosshair(ras)

    def place_crosshair(self, ras: Point) -> None:
        """Put the crosshair at a point (RAS mm) and the planes through it."""
        self.change_view(lambda v: replace(v, crosshair_ras=ras, plane_offset_mm={}, pan_mm={}))
        self.crosshair_on = True
        self.crosshair_placed.emit()

    def double_clicked(self, pane: str) -> None:
        """Maximise a pane and back."""
        self.maximise(pane)

    def hover_text(self, view: PaneView, x: float, y: float) -> str:
        """CT number and position under the mouse."""
        ras = view.ras_at(x, y)
        if ras is None:
            return ""
        hu = self.session.hu_at(ras)
        value = "outside the CT" if hu is None else f"{hu:.0f} HU".replace("-", "\u2212")
        letters = (("R", "L"), ("A", "P"), ("S", "I"))
        where = "  ".join(f"{pair[v < 0]} {abs(v):.1f}" for pair, v in zip(letters, ras, strict=True))
        return f"{value}   {where}"
