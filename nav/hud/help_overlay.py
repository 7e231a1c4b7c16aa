"""The help page over the window: every key, what the mouse does, and every stream with its clock."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QMouseEvent
from PySide6.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from nav.hud import palette
from nav.hud.actions import ACTIONS, MOUSE_HELP

__all__ = ["HelpOverlay"]


class HelpOverlay(QWidget):
    """Closed by a click, ``?`` or ``Esc``. The lamps above and the message line below stay visible."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground, True)
        self.setStyleSheet(f"background: {palette.PANEL}; border: 1px solid {palette.BORDER};")
        outer = QVBoxLayout(self)
        outer.setContentsMargins(32, 24, 32, 24)
        title = QLabel("Keys and mouse  (click or ? closes)")
        title.setProperty("role", "title")
        title.setStyleSheet("border: none; font-size: 18px; font-weight: bold;")
        outer.addWidget(title)
        grid = QGridLayout()
        grid.setHorizontalSpacing(18)
        grid.setVerticalSpacing(5)
        outer.addLayout(grid)
        rows = (len(ACTIONS) + 1) // 2
        for n, action in enumerate(ACTIONS):
            column = 0 if n < rows else 2
            keys = QLabel(", ".join(k for k in action.keys if k not in ("Enter", "Shift+?")))
            keys.setStyleSheet("border: none; font-weight: bold; color: #7FD4FF;")
            text = QLabel(action.text)
            text.setStyleSheet("border: none;")
            grid.addWidget(keys, n % rows, column)
            grid.addWidget(text, n % rows, column + 1)
        grid.setColumnStretch(1, 1)
        grid.setColumnStretch(3, 1)
        mouse = QGridLayout()
        mouse.setHorizontalSpacing(18)
        mouse.setVerticalSpacing(5)
        outer.addSpacing(14)
        outer.addLayout(mouse)
        for n, (what, meaning) in enumerate(MOUSE_HELP):
            left, right = QLabel(what), QLabel(meaning)
            left.setStyleSheet("border: none; font-weight: bold; color: #7FD4FF;")
            right.setStyleSheet("border: none;")
            mouse.addWidget(left, n, 0)
            mouse.addWidget(right, n, 1)
        mouse.setColumnStretch(1, 1)
        outer.addSpacing(14)
        self.streams = QLabel()
        self.streams.setTextFormat(Qt.TextFormat.PlainText)
        self.streams.setWordWrap(True)
        self.streams.setStyleSheet("border: none;")
        self.streams.setAccessibleName("streams")
        outer.addWidget(self.streams)
        outer.addStretch(1)
        self.hide()

    def show_streams(self, text: str) -> None:
        """The lines of the streams (`nav.hud.streams_text`); touches nothing while they stay the same."""
        if text != self.streams.text():
            self.streams.setText(text)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Close."""
        self.hide()
        event.accept()
