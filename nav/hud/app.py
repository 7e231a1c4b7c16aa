"""The Qt application and its screenshots."""

from __future__ import annotations

import os
from collections.abc import Mapping

from PySide6.QtCore import QCoreApplication
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QApplication, QWidget

__all__ = ["create_application", "grab"]


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


def grab(widget: QWidget, path: str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG of a widget as it is on the screen, ``metadata`` in its text chunks.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    ratio = widget.devicePixelRatioF()
    image = QImage(widget.size() * ratio, QImage.Format.Format_RGB32)
    image.setDevicePixelRatio(ratio)
    widget.render(image)
    for key, value in (metadata or {}).items():
        image.setText(key, value)
    if not image.save(path):
        raise OSError(f"screenshot {path}: cannot be written; check that its folder exists and is writeable")
