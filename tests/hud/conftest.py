"""A window on a fake session, shown off screen and closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QApplication

from nav.hud.app import create_application, grab
from nav.hud.main_window import MainWindow
from tests.hud.fakes import FakeSession

SIZE = (1366, 820)


@pytest.fixture(scope="session")
def qapp() -> QApplication:
    """The application that pytest-qt uses too."""
    return create_application(headless=True)


@pytest.fixture
def session(tmp_path: Path) -> FakeSession:
    made = FakeSession()
    made.picture_path = str(tmp_path / "screenshot.png")
    return made


@pytest.fixture
def window(qapp: QApplication, session: FakeSession, qtbot: object) -> Iterator[MainWindow]:
    """A shown window whose timer does not run: the tests tick by hand."""
    assert qtbot is not None
    made = MainWindow(session, show_time=False)
    made.resize(*SIZE)
    made.show()
    qapp.processEvents()
    yield made
    made.close()
    made.deleteLater()
    qapp.processEvents()


@pytest.fixture
def step(window: MainWindow, qapp: QApplication) -> Callable[[], None]:
    """One tick and the painting that it asks for."""

    def run() -> None:
        window.tick()
        qapp.processEvents()

    return run


@pytest.fixture
def picture(window: MainWindow, step: Callable[[], None], tmp_path: Path) -> Callable[[str], QImage]:
    """Tick, write the window's picture as PNG, and read it back."""

    def take(name: str) -> QImage:
        step()
        path = tmp_path / f"{name}.png"
        grab(window, str(path), {"State": name})
        image = QImage(str(path))
        assert image.width() == window.width()
        return image.convertToFormat(QImage.Format.Format_RGB32)

    return take
