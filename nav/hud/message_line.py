"""The bottom line: one message, the highest alarm or else the next step, and the button that acknowledges."""

from __future__ import annotations

from PySide6.QtCore import QRectF, Qt, Signal
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QPushButton, QWidget

from nav.hud import palette
from nav.hud.hud_state import HudState, Message
from nav.hud.look import brush, colour, font, level_colour
from nav.hud.palette import Level

__all__ = ["MessageLine"]


class MessageLine(QWidget):
    """Paints `HudState.message`; the text itself never flashes, only the field behind its glyph does."""

    acknowledged = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFixedHeight(46)
        self.setAccessibleName("message line")
        self.message = Message(Level.OFF, "")
        self._lit = True
        self.button = QPushButton("Acknowledge (Space)")
        self.button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.button.clicked.connect(self.acknowledged)
        self.button.setFixedSize(190, 44)
        self.button.hide()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 1, 1, 1)
        layout.addStretch(1)
        layout.addWidget(self.button)

    def show_state(self, state: HudState, notice: str = "") -> None:
        """Take the message. A notice of the window itself shows only while no alarm stands."""
        message = state.message
        if notice and message.level not in (Level.HIGH, Level.MEDIUM):
            message = Message(Level.INFO, notice, "notice")
        lit = state.flash_on or not message.flashing
        if (message, lit) != (self.message, self._lit):
            self.message, self._lit = message, lit
            self.button.setVisible(message.flashing)
            self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the line."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, True)
        painter.fillRect(self.rect(), brush(palette.PANEL))
        message = self.message
        loud = message.level in (Level.HIGH, Level.MEDIUM)
        field = QRectF(0.0, 0.0, 46.0, float(self.height()))
        if loud:
            shade = level_colour(message.level)
            painter.fillRect(self.rect(), brush(shade.name(), 60))
            if self._lit:
                painter.fillRect(field, shade)
        painter.setPen(colour(palette.BANNER_TEXT[message.level] if loud and self._lit else palette.TEXT))
        if not loud:
            painter.setPen(level_colour(message.level))
        painter.setFont(font(22, bold=True))
        if message.text:
            painter.drawText(field, Qt.AlignmentFlag.AlignCenter, palette.GLYPH[message.level])
        right = 200.0 if self.button.isVisible() else 12.0
        room = QRectF(58.0, 0.0, self.width() - 58.0 - right, float(self.height()))
        painter.setPen(colour("#FFFFFF" if loud else palette.TEXT))
        more = f"   (+{message.count - 1} more)" if message.count > 1 else ""
        # A long message gets a smaller face before it is cut.
        for pixels in (20, 17, 14):
            painter.setFont(font(pixels, bold=loud))
            if painter.fontMetrics().horizontalAdvance(message.text + more) <= room.width():
                break
        text = painter.fontMetrics().elidedText(message.text + more, Qt.TextElideMode.ElideRight, int(room.width()))
        painter.drawText(room, Qt.AlignmentFlag.AlignVCenter, text)
