"""The four panes and how the layouts place them."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QRect
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QWidget

from nav.hud.panes_view import PaneView

__all__ = ["PaneGrid", "place_panes"]

_GAP = 4
_TITLES = {"A": "Along needle 0\u00b0", "B": "Along needle 90\u00b0", "C": "Probe's eye", "D": "3-D"}


def place_panes(layout: str, maximised: str, width: int, height: int) -> dict[str, tuple[int, int, int, int]]:
    """Pane key → (x, y, width, height) of the panes that are visible.

    ``plan`` and ``guide`` are 2 x 2; ``ultrasound`` gives pane A (the probe's own plane) two thirds of the width and
    stacks C and D beside it; a maximised pane has all.
    """
    if maximised in _TITLES:
        return {maximised: (0, 0, width, height)}
    if layout == "ultrasound":
        wide = (width - _GAP) * 2 // 3
        half = (height - _GAP) // 2
        rest = width - wide - _GAP
        return {
            "A": (0, 0, wide, height),
            "C": (wide + _GAP, 0, rest, half),
            "D": (wide + _GAP, half + _GAP, rest, height - half - _GAP),
        }
    w, h = (width - _GAP) // 2, (height - _GAP) // 2
    right, low = width - w - _GAP, height - h - _GAP
    return {
        "A": (0, 0, w, h),
        "B": (w + _GAP, 0, right, h),
        "C": (0, h + _GAP, w, low),
        "D": (w + _GAP, h + _GAP, right, low),
    }


class PaneGrid(QWidget):
    """Owns the pane views; a pane that the layout leaves out is hidden and not asked to paint."""

    def __init__(self, clock_now_ns: Callable[[], int], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.panes = {key: PaneView(key, title, clock_now_ns, self) for key, title in _TITLES.items()}
        self._layout, self._maximised = "guide", ""

    def arrange(self, layout: str, maximised: str) -> None:
        """Place the panes."""
        self._layout, self._maximised = layout, maximised
        self._place()

    def visible_sizes(self) -> dict[str, tuple[int, int]]:
        """Pane key → device pixels, of the visible panes."""
        shown = place_panes(self._layout, self._maximised, self.width(), self.height())
        return {key: self.panes[key].device_size() for key in shown}

    def _place(self) -> None:
        shown = place_panes(self._layout, self._maximised, self.width(), self.height())
        for key, pane in self.panes.items():
            if key in shown:
                pane.setGeometry(QRect(*shown[key]))
            pane.setVisible(key in shown)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Place the panes anew."""
        super().resizeEvent(event)
        self._place()
