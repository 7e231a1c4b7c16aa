"""The numbers of the right column, painted as one widget with fixed places and monospaced digits."""

from __future__ import annotations

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from nav.hud import palette
from nav.hud.bullseye import Bullseye
from nav.hud.hud_state import Readout
from nav.hud.look import brush, colour, font
from nav.hud.numbers_text import BLANK
from nav.hud.palette import Level

__all__ = ["GuideColumn", "ReadoutPanel"]

_BIG, _SMALL = 126.0, 72.0
#: Height of two big and five small rows, the smallest scale at which they can be read, and the bull's-eye's own height.
_ALL = 2 * _BIG + 5 * _SMALL
_SMALLEST = 0.7
_BULLSEYE = 338.0
_GAP = 4

#: Colour of a number by its quality; a number is never filled, fills are for status.
_NUMBER = {
    Level.OFF: palette.MUTED,
    Level.OK: palette.TEXT,
    Level.INFO: palette.TEXT,
    Level.MEDIUM: "#FACC15",
    Level.HIGH: "#F87171",
}
_GOOD = "#4ADE80"


class GuideColumn(QWidget):
    """Bull's-eye above, readouts below. On a low screen the bull's-eye gives way: no number is ever cut off."""

    def __init__(self, bullseye: Bullseye, readouts: ReadoutPanel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._bullseye, self._readouts = bullseye, readouts
        bullseye.setParent(self)
        readouts.setParent(self)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Share the height."""
        super().resizeEvent(event)
        width, height = self.width(), self.height()
        upper = int(min(_BULLSEYE, max(height - _GAP - _SMALLEST * _ALL, 160.0)))
        self._bullseye.setGeometry(0, 0, width, upper)
        self._readouts.setGeometry(0, upper + _GAP, width, max(1, height - upper - _GAP))


class ReadoutPanel(QWidget):
    """Big numbers first, then the small ones, right-aligned on one decimal point."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("readouts")
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self.readouts: tuple[Readout, ...] = ()

    def show_readouts(self, readouts: tuple[Readout, ...]) -> None:
        """Take the numbers; repaints only when one differs."""
        if readouts != self.readouts:
            self.readouts = readouts
            self.update()

    def text_of(self, key: str) -> str:
        """The value shown for ``key`` (tests, screen readers)."""
        return next((r.value for r in self.readouts if r.key == key), "")

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint all numbers."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), brush(palette.PANEL))
        wanted = sum(_BIG if r.big else _SMALL for r in self.readouts)
        # A low screen gets lower rows; below 70 % nothing would be readable, so it is not made smaller than that.
        scale = min(1.0, max(_SMALLEST, self.height() / wanted)) if wanted else 1.0
        y = 0.0
        for readout in self.readouts:
            height = (_BIG if readout.big else _SMALL) * scale
            self._paint_one(painter, readout, y, height, scale)
            y += height
            painter.setPen(colour(palette.BORDER))
            painter.drawLine(12, int(y), self.width() - 12, int(y))

    def _paint_one(self, painter: QPainter, r: Readout, y: float, height: float, scale: float) -> None:
        w = float(self.width())
        good = r.key == "margin" and r.level is Level.OK
        shade = _GOOD if good else _NUMBER[r.level]
        painter.setPen(colour(palette.MUTED))
        painter.setFont(font(round(12 * max(scale, 0.85)), bold=True))
        painter.drawText(QRectF(14.0, y + 6.0 * scale, w - 28.0, 18.0), Qt.AlignmentFlag.AlignVCenter, r.title)
        unit_width = 40.0
        size = round((50 if r.big else 28) * scale)
        if r.big:
            line = QRectF(14.0, y + 22.0 * scale, w - 28.0 - unit_width, 58.0 * scale)
        else:
            line = QRectF(w * 0.42, y + 4.0, w * 0.58 - 14.0 - unit_width, 40.0 * scale)
        painter.setPen(colour(shade))
        painter.setFont(font(size, bold=r.big, mono=True))
        painter.drawText(line, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, r.value)
        if r.glyph and r.value != BLANK:
            painter.setFont(font(round((34 if r.big else 18) * scale), bold=True))
            left = 16.0 if r.big else w * 0.42 - 14.0
            glyph = QRectF(left, line.y(), 44.0, line.height())
            painter.drawText(glyph, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, r.glyph)
        painter.setPen(colour(palette.MUTED))
        painter.setFont(font(round((18 if r.big else 14) * max(scale, 0.85))))
        unit = QRectF(line.right() + 6.0, line.y() + (6.0 if r.big else 2.0) * scale, unit_width - 6.0, line.height())
        painter.drawText(unit, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, r.unit)
        self._paint_detail(painter, r, y, height, scale, w)

    def _paint_detail(self, painter: QPainter, r: Readout, y: float, height: float, scale: float, w: float) -> None:
        if not r.detail:
            return
        painter.setFont(font(round(12 * max(scale, 0.9))))
        painter.setPen(colour(palette.TEXT if r.big else palette.MUTED))
        lines = r.detail.split("\n")
        line_height = 17.0 * max(scale, 0.85)
        top = y + height - len(lines) * line_height - 5.0 * scale
        metrics = painter.fontMetrics()
        for n, text in enumerate(lines):
            box = QRectF(14.0, top + n * line_height, w - 28.0, line_height)
            text = metrics.elidedText(text, Qt.TextElideMode.ElideRight, int(box.width()))
            painter.drawText(box, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, text)
            painter.setPen(colour(palette.MUTED))
