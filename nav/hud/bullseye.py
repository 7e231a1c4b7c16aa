"""The bull's-eye: looking along the planned path, where the tip and the hub are, and how deep it still goes."""

from __future__ import annotations

import math

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QWidget

from nav.hud import palette
from nav.hud.hud_state import BullseyeState
from nav.hud.look import brush, colour, font, level_colour
from nav.hud.palette import Level

__all__ = ["RINGS_MM", "Bullseye", "clamp_to_rim"]

RINGS_MM = (2.0, 5.0, 10.0)
_DEPTH_RANGE_MM = 100.0
_ALIGNED = "#A3E635"


def clamp_to_rim(offset_mm: tuple[float, float], rim_mm: float) -> tuple[float, float, bool]:
    """The offset, pulled back to the rim when beyond it, and whether it was."""
    length = math.hypot(*offset_mm)
    if length <= rim_mm:
        return offset_mm[0], offset_mm[1], False
    return offset_mm[0] * rim_mm / length, offset_mm[1] * rim_mm / length, True


class Bullseye(QWidget):
    """Solid dot: the tip; hollow ring: the hub; aligned when both are inside the inner disc."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("bull's-eye")
        self.state = BullseyeState(False)

    def show_state(self, state: BullseyeState) -> None:
        """Take a new state; repaints only when it differs visibly (a tenth of a mm)."""
        if _visible(state) != _visible(self.state):
            self.state = state
            self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint rings, offsets, depth bar and words."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), brush(palette.PANEL))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, True)
        words_height = 30.0
        bar_width = 46.0
        side = min(self.width() - bar_width - 16.0, self.height() - words_height - 12.0)
        centre = QPointF((self.width() - bar_width) / 2.0, 8.0 + side / 2.0)
        rim = side / 2.0 - 10.0
        self._paint_rings(painter, centre, rim)
        if self.state.shown:
            self._paint_offsets(painter, centre, rim)
        bar = QRectF(self.width() - bar_width - 2.0, 14.0, 14.0, side - 12.0)
        self._paint_depth(painter, bar)
        words = self.state.words if self.state.shown else "---"
        painter.setPen(colour(palette.TEXT if self.state.shown else palette.MUTED))
        painter.setFont(font(17, bold=True))
        box = QRectF(0.0, self.height() - words_height - 2.0, float(self.width()), words_height)
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, words)

    def _paint_rings(self, painter: QPainter, centre: QPointF, rim: float) -> None:
        state = self.state
        inner = rim * RINGS_MM[0] / RINGS_MM[-1]
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(brush(_ALIGNED, 70) if state.shown and state.aligned else brush("#FFFFFF", 16))
        painter.drawEllipse(centre, inner, inner)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setFont(font(11))
        for mm in RINGS_MM:
            r = rim * mm / RINGS_MM[-1]
            painter.setPen(QPen(colour("#5B6472"), 1.4))
            painter.drawEllipse(centre, r, r)
            painter.setPen(colour(palette.MUTED))
            label = QRectF(centre.x() + r * 0.7071 - 2.0, centre.y() + r * 0.7071 - 2.0, 34.0, 14.0)
            painter.drawText(label, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop, f"{mm:g}")
        painter.setPen(QPen(colour("#3A4554"), 1.0))
        painter.drawLine(QPointF(centre.x() - rim, centre.y()), QPointF(centre.x() + rim, centre.y()))
        painter.drawLine(QPointF(centre.x(), centre.y() - rim), QPointF(centre.x(), centre.y() + rim))

    def _paint_offsets(self, painter: QPainter, centre: QPointF, rim: float) -> None:
        scale = rim / RINGS_MM[-1]
        shade = colour(_ALIGNED if self.state.aligned else "#FFFFFF")

        def place(offset: tuple[float, float]) -> tuple[QPointF, bool]:
            right, up, clamped = clamp_to_rim(offset, RINGS_MM[-1])
            return QPointF(centre.x() + right * scale, centre.y() - up * scale), clamped

        tip, tip_out = place(self.state.tip_mm)
        hub, hub_out = place(self.state.hub_mm)
        painter.setPen(QPen(shade, 2.0))
        painter.drawLine(tip, hub)
        painter.setBrush(brush(palette.PANEL))
        painter.drawEllipse(hub, 10.0, 10.0)
        if hub_out:
            self._arrow(painter, centre, hub, shade, filled=False)
        if tip_out:
            self._arrow(painter, centre, tip, shade, filled=True)
        else:
            painter.setBrush(shade)
            painter.drawEllipse(tip, 7.0, 7.0)
        painter.setPen(colour(palette.TEXT))
        painter.setFont(font(13, bold=True))
        if self.state.aligned:
            box = QRectF(0.0, 6.0, 110.0, 18.0)
            painter.setPen(shade)
            painter.drawText(box, Qt.AlignmentFlag.AlignCenter, f"{palette.GLYPH[Level.OK]} ALIGNED")

    @staticmethod
    def _arrow(painter: QPainter, centre: QPointF, at: QPointF, shade: object, *, filled: bool) -> None:
        dx, dy = at.x() - centre.x(), at.y() - centre.y()
        length = math.hypot(dx, dy) or 1.0
        ux, uy = dx / length, dy / length
        tip = QPointF(at.x() + 9.0 * ux, at.y() + 9.0 * uy)
        base = QPointF(at.x() - 7.0 * ux, at.y() - 7.0 * uy)
        head = QPolygonF(
            [
                tip,
                QPointF(base.x() - 8.0 * uy, base.y() + 8.0 * ux),
                QPointF(base.x() + 8.0 * uy, base.y() - 8.0 * ux),
            ]
        )
        painter.setBrush(shade if filled else Qt.BrushStyle.NoBrush)
        painter.drawPolygon(head)

    def _paint_depth(self, painter: QPainter, bar: QRectF) -> None:
        # Zero (the target) lies at four fifths of the bar: most of it is way to go, the rest is past the target.
        zero = bar.top() + 0.8 * bar.height()
        per_mm = 0.8 * bar.height() / _DEPTH_RANGE_MM
        painter.fillRect(bar, brush("#1E2632"))
        if self.state.shown:
            depth = self.state.depth_mm
            if depth >= 0.0:
                top = max(bar.top(), zero - depth * per_mm)
                painter.fillRect(QRectF(bar.left(), top, bar.width(), zero - top), brush("#C9D1DC"))
            else:
                bottom = min(bar.bottom(), zero - depth * per_mm)
                past = QRectF(bar.left(), zero, bar.width(), bottom - zero)
                painter.fillRect(past, level_colour(Level.MEDIUM))
                hatch = brush("#10141A")
                painter.setBrush(hatch)
                stripes = painter.brush()
                stripes.setStyle(Qt.BrushStyle.BDiagPattern)
                painter.fillRect(past, stripes)
        painter.setPen(QPen(colour(palette.TEXT), 2.0))
        painter.drawLine(QPointF(bar.left() - 4.0, zero), QPointF(bar.right() + 4.0, zero))
        painter.setPen(colour(palette.MUTED))
        painter.setFont(font(10))
        for mm in (0.0, 25.0, 50.0, 75.0, 100.0):
            y = zero - mm * per_mm
            painter.drawText(QRectF(bar.right() + 5.0, y - 7.0, 26.0, 14.0), Qt.AlignmentFlag.AlignVCenter, f"{mm:g}")


def _visible(state: BullseyeState) -> tuple[object, ...]:
    return (
        state.shown,
        *(round(v, 1) for v in (*state.tip_mm, *state.hub_mm, state.depth_mm)),
        state.aligned,
        state.words,
    )
