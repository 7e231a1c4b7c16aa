"""The one overlay item of a pane: it paints every line, marker, letter, plate, bar, border and banner.

One item per pane instead of one per line is what keeps the scene's bookkeeping out of the frame time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QFontMetrics, QPainter, QPainterPath, QPen, QPolygonF
from PySide6.QtWidgets import QStyleOptionGraphicsItem, QWidget

from nav.hud import palette
from nav.hud.hud_state import Freshness, PaneStatus
from nav.hud.look import brush, colour, font, halo_pen, level_colour, line_pen
from nav.hud.numbers_text import format_value
from nav.hud.palette import Level
from nav.hud.pane_frame import Marker, PaneFrame
from nav.hud.strokes import strokes

__all__ = ["Measure", "Overlay", "PaneDecor", "scale_bar_mm"]

_TITLES = {
    "A": "A  along needle 0\u00b0",
    "B": "B  along needle 90\u00b0",
    "C": "C  probe's eye",
    "D": "D  3-D",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A measured line of one pane, RAS mm; ``end`` None while only its start is set."""

    pane: str
    start: tuple[float, float, float]
    end: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class PaneDecor:
    """What is written into a pane besides its picture."""

    window_text: str = ""
    hover_text: str = ""
    frozen_text: str = ""
    active: bool = False
    show_overlays: bool = True
    crosshair_ras: tuple[float, float, float] | None = None
    measure: Measure | None = None


def scale_bar_mm(mm_per_px: float, width_px: float) -> float:
    """Length of the scale bar: 50 mm where it takes at most 45 % of the width, else the next shorter round length."""
    for length in (50.0, 20.0, 10.0, 5.0, 2.0, 1.0):
        if length / mm_per_px <= 0.45 * width_px:
            return length
    return 0.5


class Overlay(pg.GraphicsObject):  # type: ignore[misc]
    """Paints a `PaneFrame`'s geometry in pane pixels and the pane's own labels in viewport pixels."""

    def __init__(self) -> None:
        super().__init__()
        self._rect = QRectF(0.0, 0.0, 1.0, 1.0)
        self.frame: PaneFrame | None = None
        self.status = PaneStatus(Freshness.WAITING, "", Level.INFO, False, False, 250.0)
        self.decor = PaneDecor()
        self.pose_allowed = False
        self.picture_shown = False
        self.title = ""
        self._paths: list[tuple[str, QPainterPath]] = []
        self._pixel_from_ras: NDArray[np.float64] | None = None
        self._normal_mm = 1.0

    def set_frame(self, frame: PaneFrame) -> None:
        """Take a new picture's geometry; the painter paths are made once per picture."""
        self.frame = frame
        self._paths = []
        for line in frame.polylines:
            if len(line.points) < 2 or line.style not in palette.LINES:
                continue
            pairs = strokes(line)
            if len(pairs):
                x, y = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
                self._paths.append((line.style, pg.arrayToQPath(x, y, connect="pairs")))
        self._pixel_from_ras = None
        if frame.ras_from_pixel is not None:
            self._pixel_from_ras = np.asarray(np.linalg.inv(frame.ras_from_pixel), dtype=np.float64)
            self._normal_mm = float(np.linalg.norm(frame.ras_from_pixel[:3, 2]))

    def set_size(self, width: float, height: float) -> None:
        """Size of the pane in its own pixels."""
        self.prepareGeometryChange()
        self._rect = QRectF(0.0, 0.0, width, height)

    def boundingRect(self) -> QRectF:
        """The whole pane."""
        return self._rect

    def pixel_of(self, ras: tuple[float, float, float]) -> tuple[float, float, float] | None:
        """Pane pixel of a point and its distance from the plane (both by `PaneFrame.ras_from_pixel`), if planar."""
        if self._pixel_from_ras is None:
            return None
        x, y, z, _ = self._pixel_from_ras @ np.array([*ras, 1.0])
        return float(x), float(y), float(z) * self._normal_mm

    # -- painting ------------------------------------------------------------------------------------------------

    def paint(self, painter: QPainter, _option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        """Paint everything in one pass."""
        frame = self.frame
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, True)
        painter.save()
        painter.translate(0.5, 0.5)  # Pane pixels count from pixel centres, the painter from corners.
        if frame is not None and self.picture_shown and self.decor.show_overlays:
            self._paint_lines(painter)
            for marker in frame.markers:
                # The crosshair is drawn below from the view itself, so that it follows the hand at once.
                hidden = marker.style in palette.POSE_MARKERS and not self.pose_allowed
                if not hidden and marker.style != "crosshair":
                    self._paint_marker(painter, marker)
        if frame is not None and self.picture_shown:
            self._paint_crosshair(painter)
            self._paint_measure(painter)
        painter.restore()
        view = widget.rect() if widget is not None else self._rect.toRect()
        painter.save()
        painter.resetTransform()
        self._paint_labels(painter, QRectF(view))
        painter.restore()

    def _paint_lines(self, painter: QPainter) -> None:
        painter.setBrush(Qt.BrushStyle.NoBrush)
        frozen = bool(self.decor.frozen_text)
        for style, path in self._paths:
            if style == "ultrasound" and not self.status.ultrasound_shown:
                continue
            if style in palette.POSE_STYLES:
                if not self.pose_allowed:
                    continue
                if frozen and style == "needle":
                    style = "needle_frozen"
            own_dashes = style == "needle_frozen"
            painter.setPen(halo_pen(style, dashed=own_dashes))
            painter.drawPath(path)
            painter.setPen(line_pen(style, dashed=own_dashes))
            painter.drawPath(path)

    def _paint_marker(self, painter: QPainter, marker: Marker) -> None:
        c = colour(palette.MARKER_COLOUR.get(marker.style, palette.TEXT))
        r = marker.radius_px
        centre = QPointF(marker.x, marker.y)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        for pen in (QPen(colour("#000000", 190), 4.0), QPen(c, 2.0)):
            painter.setPen(pen)
            if marker.style == "target":
                for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                    painter.drawLine(
                        QPointF(marker.x + dx * 0.5 * r, marker.y + dy * 0.5 * r),
                        QPointF(marker.x + dx * 2.0 * r, marker.y + dy * 2.0 * r),
                    )
            elif marker.style == "entry":
                painter.drawPolygon(_diamond(marker.x, marker.y, r))
            elif marker.style in ("worst", "planned_worst"):
                painter.drawLine(QPointF(marker.x - r, marker.y - r), QPointF(marker.x + r, marker.y + r))
                painter.drawLine(QPointF(marker.x - r, marker.y + r), QPointF(marker.x + r, marker.y - r))
            elif marker.style == "landmark":
                painter.drawLine(QPointF(marker.x - r, marker.y), QPointF(marker.x + r, marker.y))
                painter.drawLine(QPointF(marker.x, marker.y - r), QPointF(marker.x, marker.y + r))
            else:
                painter.drawEllipse(centre, r, r)
        if marker.label:
            _plate(painter, marker.x + r + 4.0, marker.y - 9.0, marker.label, font(11), palette.TEXT)

    def _paint_crosshair(self, painter: QPainter) -> None:
        ras = self.decor.crosshair_ras
        at = self.pixel_of(ras) if ras is not None else None
        if at is None:
            return
        x, y, off_mm = at
        on_plane = abs(off_mm) < 1.0
        length, gap = (16.0, 5.0) if on_plane else (8.0, 4.0)
        for pen in (
            QPen(colour("#000000", 190), 3.0),
            QPen(colour(palette.MARKER_COLOUR["crosshair"], 255 if on_plane else 140), 1.4),
        ):
            painter.setPen(pen)
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                painter.drawLine(QPointF(x + dx * gap, y + dy * gap), QPointF(x + dx * length, y + dy * length))

    def _paint_measure(self, painter: QPainter) -> None:
        measure = self.decor.measure
        if measure is None or self.frame is None or measure.pane != self.frame.key:
            return
        start = self.pixel_of(measure.start)
        end = self.pixel_of(measure.end) if measure.end is not None else None
        if start is None:
            return
        a = QPointF(start[0], start[1])
        painter.setPen(line_pen("measure", dashed=True))
        painter.drawEllipse(a, 3.0, 3.0)
        if end is not None and measure.end is not None:
            b = QPointF(end[0], end[1])
            painter.setPen(halo_pen("measure", dashed=True))
            painter.drawLine(a, b)
            painter.setPen(line_pen("measure", dashed=True))
            painter.drawLine(a, b)
            painter.drawEllipse(b, 3.0, 3.0)
            length = float(np.linalg.norm(np.subtract(measure.end, measure.start)))
            _plate(painter, b.x() + 8.0, b.y() - 10.0, f"{length:.1f} mm", font(13, bold=True), palette.TEXT)

    def _paint_labels(self, painter: QPainter, view: QRectF) -> None:
        frame, status = self.frame, self.status
        w, h = view.width(), view.height()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        lost = status.freshness is Freshness.LOST
        if lost:
            painter.fillRect(view, brush("#5B6472", 130))
        title = frame.title if frame is not None and frame.title else self.title
        _plate(painter, 8.0, 8.0, title, font(13, bold=True), palette.TEXT)
        if frame is None:
            _plate(painter, w / 2 - 60.0, h / 2 - 10.0, "no picture yet", font(13), palette.MUTED)
        else:
            self._paint_frame_labels(painter, frame, w, h)
        if self.decor.frozen_text:
            _frame_line(painter, view, level_colour(Level.INFO), 4.0)
            _banner(painter, w - 8.0, 8.0, self.decor.frozen_text, Level.INFO)
        if status.banner:
            top = 46.0 if self.decor.frozen_text else 8.0
            if status.level is Level.INFO:
                face, shade = font(13, bold=True), palette.STATUS[Level.INFO]
                top = _clear_of_letter(face, status.banner, w, top)
                _plate(painter, w - 8.0, top, f"{palette.GLYPH[Level.INFO]}  {status.banner}", face, shade, 1.0)
            else:
                top = _clear_of_letter(font(16, bold=True), status.banner, w, top)
                _banner(painter, w - 8.0, top, status.banner, status.level)
        if status.freshness is Freshness.STALE:
            _frame_line(painter, view, level_colour(Level.MEDIUM), 5.0)
        elif lost:
            _frame_line(painter, view, level_colour(Level.HIGH), 6.0)
        elif self.decor.active and not self.decor.frozen_text:
            _frame_line(painter, view, colour("#7FD4FF", 150), 1.0)

    def _paint_frame_labels(self, painter: QPainter, frame: PaneFrame, w: float, h: float) -> None:
        letters = frame.letters or {}
        big = font(16, bold=True)
        for side, x, y, ax, ay in (
            ("left", 8.0, h / 2, 0.0, 0.5),
            ("right", w - 8.0, h / 2, 1.0, 0.5),
            ("top", w / 2, 8.0, 0.5, 0.0),
            ("bottom", w / 2, h - 8.0, 0.5, 1.0),
        ):
            if letters.get(side):
                _plate(painter, x, y, letters[side], big, palette.TEXT, ax, ay)
        lines = [self.decor.hover_text] if self.decor.hover_text else []
        if frame.ras_from_pixel is not None:
            offset = f"offset {format_value(frame.plane_offset_mm, signed=True)} mm"
            text = f"{self.decor.window_text}   {offset}"
            if _metrics(font(11)).horizontalAdvance(text) + 20.0 < w / 2.0 - 20.0:
                lines.append(text)
            else:  # A narrow pane: the lower orientation letter needs its place.
                lines += [offset, self.decor.window_text]
        if frame.ultrasound_shown and self.picture_shown:
            lines.insert(0, f"ultrasound {frame.ultrasound_age_ms:.0f} ms")
        y = h - 8.0
        for text in reversed(lines):
            y -= _plate(painter, 8.0, y, text, font(11), palette.TEXT, 0.0, 1.0).height() + 3.0
        if frame.mm_per_px > 0.0 and frame.ras_from_pixel is not None:
            self._paint_scale(painter, frame.mm_per_px * frame.image.shape[1] / max(w, 1.0), w, h)

    def _paint_scale(self, painter: QPainter, mm_per_px: float, w: float, h: float) -> None:
        length_mm = scale_bar_mm(mm_per_px, w)
        length = length_mm / mm_per_px
        text = f"{length_mm:g} mm"
        x1, y = w - 14.0, h - 16.0
        plate = QRectF(x1 - length - 6.0, y - 22.0, length + 12.0, 30.0)
        painter.fillRect(plate, brush(palette.PLATE, 170))
        painter.setPen(QPen(colour(palette.TEXT), 2.0))
        painter.drawLine(QPointF(x1 - length, y), QPointF(x1, y))
        for x in (x1 - length, x1):
            painter.drawLine(QPointF(x, y - 5.0), QPointF(x, y + 4.0))
        painter.setFont(font(11))
        painter.drawText(QRectF(plate.x(), y - 21.0, plate.width(), 16.0), Qt.AlignmentFlag.AlignHCenter, text)


def _diamond(x: float, y: float, r: float) -> QPolygonF:
    return QPolygonF([QPointF(x - r, y), QPointF(x, y - r), QPointF(x + r, y), QPointF(x, y + r)])


def _plate(
    painter: QPainter,
    x: float,
    y: float,
    text: str,
    face: pg.QtGui.QFont,
    text_colour: str,
    anchor_x: float = 0.0,
    anchor_y: float = 0.0,
) -> QRectF:
    """Text on a dark plate (white text vanishes on bone); the anchor is the plate's corner or middle at (x, y)."""
    metrics = _metrics(face)
    width, height = metrics.horizontalAdvance(text) + 12.0, metrics.height() + 4.0
    rect = QRectF(round(x - anchor_x * width), round(y - anchor_y * height), width, height)
    painter.fillRect(rect, brush(palette.PLATE, 185))
    painter.setFont(face)
    painter.setPen(colour(text_colour))
    painter.drawText(rect, Qt.AlignmentFlag.AlignCenter, text)
    return rect


def _clear_of_letter(face: pg.QtGui.QFont, text: str, width: float, top: float) -> float:
    """Move a banner of a narrow pane below the orientation letter in the middle of the upper edge."""
    left = width - 44.0 - _metrics(face).horizontalAdvance(text)
    return max(top, 40.0) if left < width / 2.0 + 30.0 else top


def _banner(painter: QPainter, right: float, top: float, text: str, level: Level) -> None:
    face = font(16, bold=True)
    width = _metrics(face).horizontalAdvance(text) + 24.0
    rect = QRectF(right - width, top, width, 32.0)
    painter.fillRect(rect, level_colour(level))
    painter.setFont(face)
    painter.setPen(colour(palette.BANNER_TEXT[level]))
    painter.drawText(rect, Qt.AlignmentFlag.AlignCenter, text)


def _frame_line(painter: QPainter, view: QRectF, line: pg.QtGui.QColor, width: float) -> None:
    pen = QPen(line, width)
    pen.setJoinStyle(Qt.PenJoinStyle.MiterJoin)
    painter.setPen(pen)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    half = width / 2.0
    painter.drawRect(view.adjusted(half, half, -half, -half))


_METRICS: dict[str, QFontMetrics] = {}


def _metrics(face: pg.QtGui.QFont) -> QFontMetrics:
    key = face.key()
    found = _METRICS.get(key)
    if found is None:
        found = _METRICS[key] = QFontMetrics(face)
    return found
