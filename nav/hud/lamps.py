"""The top bar: lamps, case and needle, and the research-only banner that is never hidden."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QPointF, QRectF, Qt
from PySide6.QtGui import QHelpEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QToolTip, QWidget

from nav.hud import palette
from nav.hud.hud_state import HudState, Lamp
from nav.hud.look import brush, colour, font, level_colour

__all__ = ["RESEARCH_ONLY", "LampBar"]

RESEARCH_ONLY = "RESEARCH USE ONLY - NOT FOR CLINICAL USE"

_BANNER_WIDTH = 330.0
_MIN_LAMP, _MAX_LAMP = 128.0, 210.0


class LampBar(QWidget):
    """Painted as one widget: fixed places, no layout that could reflow while numbers change."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFixedHeight(44)
        self.setAccessibleName("lamps")
        self._lamps: tuple[Lamp, ...] = ()
        self._flash_on = True
        self._info = ""

    def show_state(self, state: HudState, info: str) -> None:
        """Take the lamps and the line of case, needle and time of day; repaints only when something differs."""
        flashing = any(lamp.flashing for lamp in state.lamps)
        flash_on = state.flash_on or not flashing
        if (state.lamps, flash_on, info) != (self._lamps, self._flash_on, self._info):
            self._lamps, self._flash_on, self._info = state.lamps, flash_on, info
            self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the bar."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, True)
        painter.fillRect(self.rect(), brush(palette.PANEL))
        w = float(self.width())
        if self._lamps:
            width = self._lamp_width()
            for n, lamp in enumerate(self._lamps):
                self._paint_lamp(painter, lamp, 8.0 + n * width, width)
        box = QRectF(w - _BANNER_WIDTH, 4.0, _BANNER_WIDTH - 8.0, 18.0)
        painter.fillRect(box, brush("#2B3443"))
        painter.setPen(colour(palette.TEXT))
        painter.setFont(font(12, bold=True))
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, RESEARCH_ONLY)
        painter.setPen(colour(palette.MUTED))
        painter.setFont(font(12))
        box = QRectF(w - _BANNER_WIDTH, 24.0, _BANNER_WIDTH - 8.0, 17.0)
        metrics = painter.fontMetrics()
        text = metrics.elidedText(self._info, Qt.TextElideMode.ElideRight, int(box.width()))
        painter.drawText(box, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, text)
        painter.setPen(colour(palette.BORDER))
        painter.drawLine(0, self.height() - 1, self.width(), self.height() - 1)

    def _lamp_width(self) -> float:
        room = (self.width() - _BANNER_WIDTH - 16.0) / max(1, len(self._lamps))
        return min(_MAX_LAMP, max(_MIN_LAMP, room))

    def detail_at(self, point: QPointF) -> str:
        """What the lamp under ``point`` has to say beyond its text; empty: nothing, or no lamp."""
        n = int((point.x() - 8.0) // self._lamp_width())
        return self._lamps[n].detail if 0 <= n < len(self._lamps) else ""

    def event(self, event: QEvent) -> bool:
        """Hovering over a lamp shows its detail."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.detail_at(QPointF(event.pos())), self)
            return True
        return super().event(event)

    def _paint_lamp(self, painter: QPainter, lamp: Lamp, x: float, width: float) -> None:
        disc = QRectF(x + 2.0, 11.0, 22.0, 22.0)
        lit = self._flash_on or not lamp.flashing
        painter.setPen(level_colour(lamp.level))
        painter.setBrush(level_colour(lamp.level) if lit else brush(palette.PANEL))
        painter.drawEllipse(disc)
        painter.setPen(colour(palette.BANNER_TEXT[lamp.level] if lit else palette.TEXT))
        painter.setFont(font(14, bold=True))
        painter.drawText(disc, Qt.AlignmentFlag.AlignCenter, lamp.glyph)
        room = width - 34.0
        painter.setPen(colour(palette.MUTED))
        painter.setFont(font(10, bold=True))
        painter.drawText(QRectF(x + 30.0, 4.0, room, 15.0), Qt.AlignmentFlag.AlignVCenter, lamp.title)
        painter.setPen(colour(palette.TEXT))
        painter.setFont(font(13))
        text = painter.fontMetrics().elidedText(lamp.text, Qt.TextElideMode.ElideRight, int(room))
        painter.drawText(QRectF(x + 30.0, 20.0, room, 19.0), Qt.AlignmentFlag.AlignVCenter, text)
