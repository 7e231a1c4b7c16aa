"""The Qt application and its screenshots."""

from __future__ import annotations

import os
from collections.abc import Mapping

from PySide6.QtCore import QCoreApplication, QThreadPool
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QApplication, QWidget

__all__ = ["create_application", "grab", "grab_later", "wait_for_pictures"]


def create_application(headless: bool) -> QApplication:
    """The one `QApplication` of the process, made or found.

    Parameters
    ----------
    headless : bool
        Paint into memory, without any display (Qt's ``offscreen`` platform; it has no OpenGL, and none is used).

    Raises
    ------
    RuntimeError
        If a core application without windows exists already.
    """
    existing = QCoreApplication.instance()
    if existing is not None:
        if not isinstance(existing, QApplication):
            raise RuntimeError("a Qt application without windows runs in this process; the HUD needs its own")
        return existing
    if headless:
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
    QCoreApplication.setOrganizationName("ablation-nav")
    QCoreApplication.setApplicationName("ablation-nav")
    return QApplication(["ablation-nav"])


def _picture(widget: QWidget, metadata: Mapping[str, str] | None) -> QImage:
    image = widget.grab().toImage()
    for key, value in (metadata or {}).items():
        image.setText(key, value)
    return image


def _save(image: QImage, path: str) -> None:
    if not image.save(path):
        raise OSError(f"screenshot {path}: cannot be written; check that its folder exists and is writeable")


def grab(widget: QWidget, path: str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG of a widget as it is on the screen, ``metadata`` in its text chunks.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    _save(_picture(widget, metadata), path)


def grab_later(widget: QWidget, path: str, metadata: Mapping[str, str] | None = None) -> None:
    """Take the picture now and compress it beside the Qt thread, which goes on painting (see `wait_for_pictures`)."""
    image = _picture(widget, metadata)
    QThreadPool.globalInstance().start(lambda: _save(image, path))


def wait_for_pictures() -> None:
    """Wait until every picture of `grab_later` is written."""
    QThreadPool.globalInstance().waitForDone()
