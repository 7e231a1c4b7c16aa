"""One pane: a pyqtgraph view with a picture and one overlay item, repainted once per frame on request.

`NoViewportUpdate` and one ``viewport().update()`` per frame keep the window at one flush per frame; left to itself the
graphics view schedules one for every item that changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QMouseEvent, QPaintEvent, QResizeEvent, QWheelEvent
from PySide6.QtWidgets import QGraphicsView, QSizePolicy, QWidget

from nav.hud import palette
from nav.hud.hud_state import PaneStatus
from nav.hud.overlay import Overlay, PaneDecor
from nav.hud.pane_frame import PaneFrame
from nav.runtime.events import Point

__all__ = ["PaneView"]


class PaneView(pg.GraphicsView):  # type: ignore[misc]
    """Shows the newest `PaneFrame` of one pane and reports what the mouse does.

    Parameters
    ----------
    key : str
        ``A`` to ``D``.
    title : str
        Shown until a picture brings its own.
    clock_now_ns : callable
        The session's clock; asked again inside the paint event, so that no pose older than its limit is ever painted.
    """

    dragged = Signal(str, object, float, float)
    """Pane, button, pixels to the right and up since the last report."""
    scrolled = Signal(str, float, object)
    """Pane, notches away from the person, keyboard modifiers."""
    clicked = Signal(str, float, float)
    double_clicked = Signal(str)
    hovered = Signal(str, float, float)
    left = Signal(str)
    resized = Signal()

    def __init__(self, key: str, title: str, clock_now_ns: Callable[[], int], parent: QWidget | None = None) -> None:
        super().__init__(parent, background=palette.BACKGROUND)
        self.key = key
        self._clock_now_ns = clock_now_ns
        self._dirty = True
        self._last_pos: QPointF | None = None
        self._press_pos: QPointF | None = None
        self._moved = False
        self.frame: PaneFrame | None = None
        self.painted_frame: PaneFrame | None = None
        self.frame_number = 0
        self.painted_number = 0
        self.box = pg.ViewBox(enableMouse=False, enableMenu=False, invertY=True, defaultPadding=0.0)
        self.box.setBorder(None)
        self.setCentralItem(self.box)
        self.item = pg.ImageItem(axisOrder="row-major")
        self.item.setVisible(False)
        self.overlay = Overlay()
        self.overlay.title = title
        self.overlay.setZValue(10)
        self.box.addItem(self.item, ignoreBounds=True)
        self.box.addItem(self.overlay, ignoreBounds=True)
        self.setViewportUpdateMode(QGraphicsView.ViewportUpdateMode.NoViewportUpdate)
        self.setMouseTracking(True)
        self.viewport().setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored)
        self.setAccessibleName(f"pane {key}")
        self._range: tuple[int, int] = (0, 0)

    # -- what is shown -------------------------------------------------------------------------------------------

    def show_frame(self, frame: PaneFrame) -> None:
        """Take a new picture. Nothing is painted before `flush`."""
        self.frame = frame
        self.frame_number += 1
        # A view, never a copy: the producer does not write into a picture it has handed over.
        self.item.setImage(frame.image, autoLevels=False)
        height, width = frame.image.shape[:2]
        self._set_range(width, height)
        self.overlay.set_frame(frame)
        self._dirty = True

    def set_status(self, status: PaneStatus, decor: PaneDecor) -> None:
        """Take freshness and labels; repaints only when they differ."""
        if status != self.overlay.status or decor != self.overlay.decor:
            self.overlay.status, self.overlay.decor = status, decor
            self._dirty = True

    def forget_frame(self) -> None:
        """Show nothing: the case was closed."""
        self.frame = None
        self.overlay.frame = None
        self._dirty = True

    def flush(self) -> bool:
        """Request one repaint if anything changed since the last one; True when it did."""
        if self._judge():
            self._dirty = True
        if not self._dirty:
            return False
        self._dirty = False
        self.item.setVisible(self.overlay.picture_shown)
        self.viewport().update()
        return True

    def _judge(self) -> bool:
        """Decide from the clock what of the picture may be shown; True when the decision changed."""
        frame, status, decor = self.frame, self.overlay.status, self.overlay.decor
        pose = picture = False
        if frame is not None:
            held = bool(decor.frozen_text)
            age_ms = (self._clock_now_ns() - frame.arrival_ns) / 1e6
            pose = status.needle_shown and frame.arrival_ns != 0 and (held or age_ms <= status.max_arrival_age_ms)
            picture = not frame.ultrasound_shown or status.ultrasound_shown or held
            if frame.ras_from_pixel is None and frame.arrival_ns != 0:
                # The 3-D picture has the needle in its pixels: with the pose it goes as a whole.
                picture = picture and pose
        changed = (pose, picture) != (self.overlay.pose_allowed, self.overlay.picture_shown)
        self.overlay.pose_allowed, self.overlay.picture_shown = pose, picture
        return changed

    def paintEvent(self, event: QPaintEvent) -> None:
        """Judge once more by the clock of now, then paint."""
        if self._judge():
            self.item.setVisible(self.overlay.picture_shown)
        super().paintEvent(event)
        self.painted_frame, self.painted_number = self.frame, self.frame_number

    def _set_range(self, width: int, height: int) -> None:
        if (width, height) != self._range:
            self._range = (width, height)
            self.overlay.set_size(width, height)
            self.box.setRange(QRectF(0.0, 0.0, width, height), padding=0.0, disableAutoRange=True)

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        """Keep the picture filling the pane and ask for one of the new size."""
        super().resizeEvent(event)
        if getattr(self, "overlay", None) is not None:
            if self.frame is None:
                self._set_range(max(self.width(), 1), max(self.height(), 1))
            self._dirty = True
            self.resized.emit()

    def device_size(self) -> tuple[int, int]:
        """Width and height in device pixels: the size of picture that fits 1:1."""
        ratio = self.devicePixelRatioF()
        return max(16, round(self.viewport().width() * ratio)), max(16, round(self.viewport().height() * ratio))

    # -- where the mouse is --------------------------------------------------------------------------------------

    def ras_at(self, x: float, y: float) -> Point | None:
        """RAS mm under a viewport position, None in the 3-D view or without a picture."""
        frame = self.frame
        if frame is None or frame.ras_from_pixel is None:
            return None
        height, width = frame.image.shape[:2]
        px = x * width / max(self.viewport().width(), 1)
        py = y * height / max(self.viewport().height(), 1)
        # Pixel centres have whole coordinates, the picture's edge lies at -0.5.
        ras = frame.ras_from_pixel @ np.array([px - 0.5, py - 0.5, 0.0, 1.0])
        return float(ras[0]), float(ras[1]), float(ras[2])

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Begin a click or a drag."""
        self._last_pos = self._press_pos = event.position()
        self._moved = False
        event.accept()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Report a drag (with a button) or a hover (without)."""
        pos = event.position()
        if self._last_pos is not None and event.buttons() != Qt.MouseButton.NoButton:
            start = self._press_pos or pos
            # A click may shake by 3 px without becoming a drag.
            if self._moved or (pos - start).manhattanLength() > 3.0:
                delta = pos - (self._last_pos if self._moved else start)
                self._moved = True
                self._last_pos = pos
                self.dragged.emit(self.key, event.buttons(), delta.x(), -delta.y())
        else:
            self.hovered.emit(self.key, pos.x(), pos.y())
        event.accept()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """End a drag, or report a click."""
        if not self._moved and self._press_pos is not None and event.button() == Qt.MouseButton.LeftButton:
            self.clicked.emit(self.key, event.position().x(), event.position().y())
        self._last_pos = self._press_pos = None
        event.accept()

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        """Report a double click; its second release is no click."""
        self._press_pos = None
        if event.button() == Qt.MouseButton.LeftButton:
            self.double_clicked.emit(self.key)
        event.accept()

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Report notches (120 units each; a touch pad sends fractions)."""
        delta = event.angleDelta()
        # Some platforms turn Shift + wheel into a sideways wheel.
        notches = (delta.y() or delta.x()) / 120.0
        if notches:
            self.scrolled.emit(self.key, notches, event.modifiers())
        event.accept()

    def leaveEvent(self, event: QEvent) -> None:
        """The mouse has left the pane."""
        self.left.emit(self.key)
        super().leaveEvent(event)
