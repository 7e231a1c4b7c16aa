"""Small widgets that the set-up pages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFileDialog, QLabel, QPushButton, QVBoxLayout, QWidget

from nav.hud.file_work import FileWork
from nav.hud.session import HudSession
from nav.runtime.events import Point
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["AskPath", "Page", "PageHost", "ask_path", "button", "label", "point_text", "set_text"]

#: Kind (``folder`` or ``file``), title, filter → chosen path, empty when cancelled.
AskPath = Callable[[str, str, str], str]


class PageHost(Protocol):
    """What a page needs from the panel that holds it."""

    session: HudSession
    work: FileWork

    def ask(self, kind: str, title: str, pattern: str = "") -> str:
        """A path chosen by the person, empty when cancelled."""

    def say(self, text: str, *, problem: bool = False) -> None:
        """Show a line under the page."""

    def crosshair(self) -> Point | None:
        """Where the crosshair is, RAS mm."""

    def set_crosshair_mode(self, on: bool) -> None:
        """Let clicks place the crosshair."""

    def place_crosshair(self, ras: Point) -> None:
        """Show a point in the planes."""

    def guidance_started(self) -> None:
        """The person has started guidance."""


class Page(QWidget):
    """One step of the set-up."""

    def __init__(self, host: PageHost, hint: str) -> None:
        super().__init__()
        self.host = host
        self.session = host.session
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 4, 0)
        self.column.setSpacing(6)
        self.column.addWidget(label(hint, "muted"))

    def show_snapshot(self, snapshot: NavigationSnapshot | None) -> None:
        """Called at every presentation while the page is visible; changes only what differs."""


def label(text: str = "", role: str = "") -> QLabel:
    """A wrapping label of plain text (names from files are never taken as markup)."""
    made = QLabel(text)
    made.setWordWrap(True)
    made.setTextFormat(Qt.TextFormat.PlainText)
    if role:
        made.setProperty("role", role)
    return made


def button(text: str, clicked: Callable[[], object], *, primary: bool = False) -> QPushButton:
    """A 44 px button."""
    made = QPushButton(text)
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    if primary:
        made.setProperty("role", "primary")
    made.clicked.connect(lambda _checked=False: clicked())
    return made


def set_text(target: QLabel | QPushButton, text: str) -> None:
    """Set a text only when it differs: a label that is set anew is laid out anew."""
    if target.text() != text:
        target.setText(text)


def point_text(ras: Point) -> str:
    """A point with letters instead of signs, mm."""
    letters = (("R", "L"), ("A", "P"), ("S", "I"))
    return "  ".join(f"{pair[v < 0]} {abs(v):.1f}" for pair, v in zip(letters, ras, strict=True))


def ask_path(parent: QWidget, kind: str, title: str, pattern: str) -> str:
    """Qt's own file dialogue."""
    options = QFileDialog.Option.DontUseNativeDialog
    if kind == "folder":
        return QFileDialog.getExistingDirectory(parent, title, "", options | QFileDialog.Option.ShowDirsOnly)
    chosen, _ = QFileDialog.getOpenFileName(parent, title, "", pattern, options=options)
    return chosen
