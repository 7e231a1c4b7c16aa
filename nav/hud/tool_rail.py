"""The rail of buttons at the left: every frequent action for a gloved finger, 44 px high at least."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QPushButton, QWidget

from nav.hud.actions import ACTIONS

__all__ = ["ToolRail"]

WIDTH = 72
_HEIGHT, _GAP = 44, 4
_CHECKABLE = frozenset(
    {"layout_plan", "layout_guide", "layout_ultrasound", "freeze", "crosshair", "measure", "ablation", "record"}
)
#: Left out first when the screen is low, the least needed first; their keys still work.
_EXPENDABLE = ("full_screen", "measure", "grid", "next_target", "window_preset")


class ToolRail(QWidget):
    """Buttons made from the action table; ``hide_overlays`` acts while it is held."""

    triggered = Signal(str)
    released = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFixedWidth(WIDTH)
        self.buttons: dict[str, QPushButton] = {}
        for action in ACTIONS:
            if not action.button:
                continue
            button = QPushButton(action.button, self)
            button.setProperty("role", "tool")
            button.setToolTip(f"{action.text}  ({action.keys[0]})")
            button.setAccessibleName(action.text)
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.setCheckable(action.name in _CHECKABLE)
            name = action.name
            if name == "hide_overlays":
                button.pressed.connect(lambda n=name: self.triggered.emit(n))
                button.released.connect(lambda n=name: self.released.emit(n))
            else:
                button.clicked.connect(lambda _checked=False, n=name: self.triggered.emit(n))
            self.buttons[name] = button

    def set_checked(self, name: str, on: bool) -> None:
        """Show the state of a checkable action."""
        button = self.buttons[name]
        if button.isChecked() != on:
            button.setChecked(on)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Place the buttons; a low screen leaves the expendable ones to the keys."""
        super().resizeEvent(event)
        room = max(1, (self.height() + _GAP) // (_HEIGHT + _GAP))
        hidden = set(_EXPENDABLE[: max(0, len(self.buttons) - room)])
        y = 0
        for name, button in self.buttons.items():
            button.setVisible(name not in hidden)
            if name not in hidden:
                button.setGeometry(4, y, WIDTH - 8, _HEIGHT)
                y += _HEIGHT + _GAP
