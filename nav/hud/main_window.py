"""The window: lamps above, tools left, four panes, bull's-eye and readouts (or the set-up) right, one message below.

A timer polls the newest snapshot and pictures; nothing is pushed at the window. Each tick derives the whole state from
the clock, so a stream or a compute thread that has died shows within one tick of its limit although nothing arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from PySide6.QtCore import QEvent, QObject, QSize, Qt, QTime, QTimer
from PySide6.QtGui import QCloseEvent, QKeyEvent, QKeySequence, QResizeEvent, QShowEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from nav.hud import palette, view_changes
from nav.hud.actions import action_for_key
from nav.hud.app import grab
from nav.hud.bullseye import Bullseye
from nav.hud.controller import Controller
from nav.hud.help_overlay import HelpOverlay
from nav.hud.hud_state import BullseyeState, HudState
from nav.hud.lamps import LampBar
from nav.hud.look import stylesheet
from nav.hud.message_line import MessageLine
from nav.hud.numbers_text import BLANK
from nav.hud.overlay import PaneDecor
from nav.hud.paint_meter import PaintMeter
from nav.hud.palette import Level
from nav.hud.pane_frame import PaneFrame
from nav.hud.pane_grid import PaneGrid
from nav.hud.presentation import present
from nav.hud.readouts import GuideColumn, ReadoutPanel
from nav.hud.session import HudSession
from nav.hud.setup_panel import SetupPanel
from nav.hud.tool_rail import ToolRail
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["MINIMUM_SIZE", "MainWindow", "PaintedCallback"]

#: Pane, sequence of the snapshot it shows, arrival of its newest pose (0: none), end of paint; session's clock, ns.
PaintedCallback = Callable[[str, int, int, int], None]

MINIMUM_SIZE = (1366, 820)
SIDE_WIDTH = 340
TICK_MS = 4
_PRESENT_EVERY_NS = 50_000_000
_READOUT_EVERY_NS = 100_000_000
_BULLSEYE_EVERY_NS = 30_000_000


class MainWindow(QWidget):
    """The HUD.

    Parameters
    ----------
    session : HudSession
        Everything behind the window.
    on_painted : callable, optional
        Called after the flush of every paint that showed a new picture.
    latency_warn_ms : float
        Limit of the latency lamp.
    show_time : bool
        The time of day in the top bar (off for reproducible pictures).
    """

    def __init__(
        self,
        session: HudSession,
        *,
        on_painted: PaintedCallback | None = None,
        latency_warn_ms: float = 100.0,
        show_time: bool = True,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.session = session
        self._on_painted = on_painted
        self._latency_warn_ms = latency_warn_ms
        self._show_time = show_time
        self.meter = PaintMeter()
        self.state: HudState | None = None
        self._shown: Mapping[str, float] = MappingProxyType({})
        self._snapshot: NavigationSnapshot | None = None
        self._presented_ns = 0
        self._readouts_ns = 0
        self._bullseye_ns = 0
        self._faulty = False
        self._depth_words = ""
        self._hover: tuple[str, float, float] | None = None
        self._held_keys: set[str] = set()
        self._case_generation: int | None = None
        self.setWindowTitle("ablation-nav")
        self.setMinimumSize(*MINIMUM_SIZE)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setStyleSheet(stylesheet())
        self.controller = Controller(session, self)
        self._build()
        self._connect()
        self.controller.change_view(lambda v: replace(v, sizes=v.sizes or {}))
        self._arrange()
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self.tick)

    def _build(self) -> None:
        self.lamps = LampBar()
        self.rail = ToolRail()
        self.grid = PaneGrid(self.session.clock_now_ns)
        self.panes = self.grid.panes
        self.bullseye = Bullseye()
        self.readouts = ReadoutPanel()
        self.setup = SetupPanel(self.session, self.controller)
        self.message = MessageLine()
        self.side = QStackedWidget()
        self.side.addWidget(GuideColumn(self.bullseye, self.readouts))
        self.side.addWidget(self.setup)
        tabs = QHBoxLayout()
        tabs.setContentsMargins(0, 0, 0, 0)
        tabs.setSpacing(4)
        self.tab_setup = QPushButton("SET-UP")
        self.tab_guide = QPushButton("GUIDANCE")
        for button, index in ((self.tab_setup, 1), (self.tab_guide, 0)):
            button.setCheckable(True)
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.clicked.connect(lambda _checked=False, n=index: self.show_side(n))
            tabs.addWidget(button)
        side_box = QWidget()
        side_box.setFixedWidth(SIDE_WIDTH)
        side = QVBoxLayout(side_box)
        side.setContentsMargins(0, 0, 0, 0)
        side.setSpacing(4)
        side.addLayout(tabs)
        side.addWidget(self.side, 1)
        middle = QHBoxLayout()
        middle.setContentsMargins(0, 4, 4, 4)
        middle.setSpacing(4)
        middle.addWidget(self.rail)
        middle.addWidget(self.grid, 1)
        middle.addWidget(side_box)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addWidget(self.lamps)
        outer.addLayout(middle, 1)
        outer.addWidget(self.message)
        self.help = HelpOverlay(self)
        self.fault = QLabel(self)
        self.fault.setTextFormat(Qt.TextFormat.PlainText)
        self.fault.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.fault.setWordWrap(True)
        red = palette.STATUS[Level.HIGH]
        self.fault.setStyleSheet(f"background: {palette.PANEL}; border: 6px solid {red}; font-size: 22px;")
        self.fault.hide()
        self.show_side(1 if self.session.view().layout == "plan" else 0)

    def _connect(self) -> None:
        c = self.controller
        for pane in self.panes.values():
            pane.dragged.connect(c.dragged)
            pane.scrolled.connect(c.scrolled)
            pane.clicked.connect(lambda key, x, y: c.clicked(self.panes[key], x, y))
            pane.double_clicked.connect(c.double_clicked)
            pane.hovered.connect(self._hovered)
            pane.left.connect(self._left)
            pane.resized.connect(self._sizes)
        self.rail.triggered.connect(c.trigger)
        self.rail.released.connect(c.release)
        self.message.acknowledged.connect(c.acknowledge)
        c.layout_changed.connect(self._layout_changed)
        c.screenshot_wanted.connect(self.take_screenshot)
        c.full_screen_wanted.connect(self._toggle_full_screen)
        c.help_wanted.connect(self._toggle_help)

    # -- running -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin polling."""
        self._timer.start(TICK_MS)

    def stop(self) -> None:
        """Stop polling; nothing is shown as live afterwards because nothing is painted any more."""
        self._timer.stop()

    def tick(self) -> None:
        """Poll, derive, and repaint what differs.

        A fault in here must not leave the last picture standing: it covers the panes and blanks the numbers until a
        tick succeeds again.
        """
        try:
            self._poll()
        except Exception as error:
            self._cover(f"DISPLAY FAULT\n\n{type(error).__name__}: {error}\n\nDo not navigate. Restart the program.")
            if not self._faulty:
                self._faulty = True
                raise  # Once, so that it is printed (and fails a test).
        else:
            if self._faulty:
                self._faulty = False
                self.fault.hide()
                self._shown = MappingProxyType({})

    def _cover(self, text: str) -> None:
        self.fault.setText(text)
        self.fault.setGeometry(self.grid.geometry())
        self.fault.show()
        self.fault.raise_()
        self.readouts.show_readouts(tuple(replace(r, value=BLANK, detail="") for r in self.readouts.readouts))
        self.bullseye.show_state(BullseyeState(False))
        self._presented_ns = self._readouts_ns = self._bullseye_ns = 0

    def _poll(self) -> None:
        session = self.session
        now_ns = session.clock_now_ns()
        snapshot = session.latest_snapshot()
        if self.controller.frozen_since_ns is None:
            for key, frame in session.latest_panes().items():
                pane = self.panes.get(key)
                if pane is not None and pane.frame is not frame:
                    pane.show_frame(frame)
        if snapshot is not self._snapshot or abs(now_ns - self._presented_ns) >= _PRESENT_EVERY_NS:
            self._snapshot = snapshot
            self._present(snapshot, now_ns)
        for pane in self.panes.values():
            if pane.isVisible():
                pane.flush()

    def _present(self, snapshot: NavigationSnapshot | None, now_ns: int) -> None:
        self._presented_ns = now_ns
        controller = self.controller
        latency_ms = self.meter.age_p95_ms(now_ns)
        if latency_ms is not None and snapshot is not None and snapshot.needle.pose is not None:
            # From the sensor: what the pose took to get here comes on top of what it took to be painted.
            latency_ms += max(0.0, (snapshot.needle.arrival_ns - snapshot.needle.acquired_ns) / 1e6)
        state = present(
            snapshot,
            now_ns,
            acknowledged=controller.acknowledged,
            shown=self._shown,
            latency_ms=latency_ms,
            latency_warn_ms=self._latency_warn_ms,
            zone_work=self.session.zone_work(),
        )
        before, self.state = self.state, state
        controller.acknowledged = state.acknowledged
        controller.standing = frozenset(a.code for a in state.alarms)
        self._show_panes(state, now_ns)
        self.message.show_state(state, controller.notice_now(now_ns))
        urgent = before is None or _kind(before) != _kind(state)
        if urgent or abs(now_ns - self._readouts_ns) >= _READOUT_EVERY_NS:
            # Numbers change ten times a second at most; blanking never waits.
            self._readouts_ns = now_ns
            self._shown = state.shown
            self.readouts.show_readouts(state.readouts)
            self._depth_words = state.bullseye.words
            self.lamps.show_state(state, self._info())
            if self.help.isVisible():
                self.help.show_streams("\n".join(lamp.detail for lamp in state.lamps if lamp.detail))
        if urgent or abs(now_ns - self._bullseye_ns) >= _BULLSEYE_EVERY_NS:
            # The dots move at 30 Hz; the words keep step with the number beside them.
            self._bullseye_ns = now_ns
            self.bullseye.show_state(replace(state.bullseye, words=self._depth_words))
        self._show_buttons(state)
        self.setup.show_snapshot(snapshot)

    def _show_panes(self, state: HudState, now_ns: int) -> None:
        controller, view = self.controller, self.session.view()
        preset = view_changes.preset_name(view)
        window = f"W {view.window_hu:.0f} L {view.level_hu:.0f}".replace("-", "\u2212")
        if preset:
            window = f"{window} ({preset})"
        frozen = ""
        if controller.frozen_since_ns is not None:
            frozen = f"FROZEN {max(0.0, (now_ns - controller.frozen_since_ns) / 1e9):.0f} s"
        for key, pane in self.panes.items():
            hover = ""
            if self._hover is not None and self._hover[0] == key:
                hover = controller.hover_text(pane, self._hover[1], self._hover[2])
            pane.set_status(
                state.panes,
                PaneDecor(
                    window_text=window,
                    hover_text=hover,
                    frozen_text=frozen,
                    active=self._hover is not None and self._hover[0] == key,
                    show_overlays=view.show_overlays,
                    crosshair_ras=view.crosshair_ras,
                    measure=controller.measure,
                ),
            )

    def _info(self) -> str:
        case = self.session.case_info()
        generation = None if case is None else case.generation
        if generation != self._case_generation:
            self._case_generation = generation
            if case is None:
                for pane in self.panes.values():
                    pane.forget_frame()
        parts = [case.pseudonym if case is not None else "no case", self.session.needle_name()]
        if self._show_time:
            parts.append(QTime.currentTime().toString("HH:mm:ss"))
        return "   ".join(parts)

    def _show_buttons(self, state: HudState) -> None:
        view, rail = self.session.view(), self.rail
        for layout in ("plan", "guide", "ultrasound"):
            rail.set_checked(f"layout_{layout}", view.layout == layout)
        rail.set_checked("freeze", self.controller.frozen_since_ns is not None)
        rail.set_checked("crosshair", self.controller.crosshair_on)
        rail.set_checked("measure", self.controller.measuring)
        rail.set_checked("ablation", state.ablating)
        rail.set_checked("record", state.recording)

    # -- layout --------------------------------------------------------------------------------------------------

    def show_side(self, index: int) -> None:
        """0: bull's-eye and readouts; 1: set-up."""
        self.side.setCurrentIndex(index)
        self.tab_setup.setChecked(index == 1)
        self.tab_guide.setChecked(index == 0)

    def _layout_changed(self) -> None:
        self._arrange()
        self.show_side(1 if self.session.view().layout == "plan" else 0)

    def _arrange(self) -> None:
        view = self.session.view()
        self.grid.arrange(view.layout, view.maximised)
        self._sizes()

    def _sizes(self) -> None:
        sizes = self.grid.visible_sizes()
        self.controller.change_view(lambda v: replace(v, sizes=sizes))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """The help page follows the panes."""
        super().resizeEvent(event)
        self._place_help()

    def showEvent(self, event: QShowEvent) -> None:
        """Take the sizes that the panes have got by now."""
        super().showEvent(event)
        self._arrange()

    def _place_help(self) -> None:
        self.help.setGeometry(
            self.rail.width(), 44, max(1, self.width() - SIDE_WIDTH - self.rail.width()), self.grid.height()
        )

    def _toggle_help(self) -> None:
        self._place_help()
        self.help.setVisible(not self.help.isVisible())
        self.help.raise_()

    def _toggle_full_screen(self) -> None:
        self.setWindowState(self.windowState() ^ Qt.WindowState.WindowFullScreen)

    def sizeHint(self) -> QSize:
        """The size the layout was made for."""
        return QSize(1920, 1080)

    # -- input ---------------------------------------------------------------------------------------------------

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Every key of the action table; held keys act once."""
        key = _key_name(event)
        action = action_for_key(key)
        if action is None:
            super().keyPressEvent(event)
            return
        event.accept()
        if event.isAutoRepeat() and action.name not in ("blend_less", "blend_more"):
            return
        if action.name == "grid" and self.help.isVisible():
            self.help.hide()
            return
        self._held_keys.add(action.name)
        self.controller.trigger(action.name)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        """End what lasts while a key is held."""
        action = action_for_key(_key_name(event))
        if action is not None and not event.isAutoRepeat() and action.name in self._held_keys:
            self._held_keys.discard(action.name)
            self.controller.release(action.name)
        event.accept()

    def changeEvent(self, event: QEvent) -> None:
        """A window that loses the focus gets no key release: nothing stays hidden because of it."""
        if event.type() == QEvent.Type.ActivationChange and not self.isActiveWindow():
            for name in sorted(self._held_keys):
                self.controller.release(name)
            self._held_keys.clear()
        super().changeEvent(event)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Keys typed while a button or table of the set-up has the focus reach the table of actions too."""
        if (
            event.type() == QEvent.Type.KeyPress
            and isinstance(event, QKeyEvent)
            and isinstance(watched, QWidget)
            and watched is not self
            and watched.window() is self
            and not isinstance(watched, QLineEdit | QAbstractSpinBox)
            and event.key() in (Qt.Key.Key_Space, Qt.Key.Key_L)
        ):
            self.keyPressEvent(event)
            return True
        return super().eventFilter(watched, event)

    def _hovered(self, key: str, x: float, y: float) -> None:
        self._hover = (key, x, y)

    def _left(self, key: str) -> None:
        if self._hover is not None and self._hover[0] == key:
            self._hover = None

    # -- painting ------------------------------------------------------------------------------------------------

    def event(self, event: QEvent) -> bool:
        """Note the end of paint: the window's update request paints all widgets and flushes them before it returns."""
        result = super().event(event)
        if event.type() == QEvent.Type.UpdateRequest:
            self._note_painted()
        return result

    def _note_painted(self) -> None:
        painted_ns = self.session.clock_now_ns()
        frozen = self.controller.frozen_since_ns is not None
        for key, pane in self.panes.items():
            frame: PaneFrame | None = pane.painted_frame
            if frame is None or not pane.isVisible():
                continue
            arrival_ns = frame.arrival_ns if not frozen and pane.overlay.pose_allowed else 0
            if self.meter.painted(key, pane.painted_number, arrival_ns, painted_ns) and self._on_painted is not None:
                self._on_painted(key, frame.snapshot_sequence, arrival_ns, painted_ns)

    def take_screenshot(self) -> str:
        """Write a PNG of the window with its metadata; returns the path, empty when it could not be written."""
        path = self.session.screenshot_path()
        try:
            grab(self, path, dict(self.session.screenshot_metadata()))
        except OSError as error:
            self.controller.notice(str(error))
            return ""
        self.controller.notice(f"Screenshot: {path}")
        return path

    def closeEvent(self, event: QCloseEvent) -> None:
        """Stop the timer and wait for file work before the widgets go."""
        self.stop()
        self.setup.shut_down()
        super().closeEvent(event)


def _kind(state: HudState) -> tuple[object, ...]:
    """What must be seen at once when it changes: levels, flashing, and which numbers are blank."""
    lamps = tuple((lamp.level, lamp.flashing) for lamp in state.lamps)
    flash_on = state.flash_on or not any(lamp.flashing for lamp in state.lamps)
    return (*lamps, flash_on, *(r.value == BLANK for r in state.readouts))


def _key_name(event: QKeyEvent) -> str:
    key = Qt.Key(event.key())
    if event.text() == "?":
        return "?"
    if key in (Qt.Key.Key_BracketLeft, Qt.Key.Key_BracketRight):
        return event.text() or ("[" if key is Qt.Key.Key_BracketLeft else "]")
    return QKeySequence(key).toString(QKeySequence.SequenceFormat.PortableText)
