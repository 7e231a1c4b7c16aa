"""Colours and fonts as Qt objects, made once."""

from __future__ import annotations

from functools import cache

from PySide6.QtCore import Qt
from PySide6.QtGui import QBrush, QColor, QFont, QPen

from nav.hud import palette
from nav.hud.palette import Level
from nav.hud.strokes import DASHES_PX

__all__ = ["brush", "colour", "font", "halo_pen", "level_colour", "line_pen", "stylesheet"]


@cache
def colour(name: str, alpha: int = 255) -> QColor:
    """A colour by ``#RRGGBB``; treat as constant."""
    made = QColor(name)
    made.setAlpha(alpha)
    return made


@cache
def brush(name: str, alpha: int = 255) -> QBrush:
    """A solid brush; treat as constant."""
    return QBrush(colour(name, alpha))


def level_colour(level: Level) -> QColor:
    """The fill of a status level."""
    return colour(palette.STATUS[level])


@cache
def font(pixels: int, *, bold: bool = False, mono: bool = False) -> QFont:
    """DejaVu Sans (Mono) where installed, else the system's own; size in pixels, so that layouts hold at any DPI."""
    made = QFont()
    made.setFamilies(["DejaVu Sans Mono", "monospace"] if mono else ["DejaVu Sans", "Noto Sans", "sans-serif"])
    made.setPixelSize(pixels)
    made.setBold(bold)
    if mono:
        made.setStyleHint(QFont.StyleHint.Monospace)
    return made


@cache
def line_pen(style: str, *, dashed: bool = False) -> QPen:
    """Pen of an overlay style; `KeyError` for an unknown one.

    Solid, because pictures hand over their dashes as strokes (`nav.hud.strokes`), unless ``dashed`` asks for Qt's own.
    """
    look = palette.LINES[style]
    return _pen(colour(look.colour), look.width_px, look.dash if dashed else "solid", look.width_px)


@cache
def halo_pen(style: str, *, dashed: bool = False) -> QPen:
    """The dark line underneath: 1 px wider on both sides, dashed alike."""
    look = palette.LINES[style]
    return _pen(colour("#000000", 190), look.width_px + 2.0, look.dash if dashed else "solid", look.width_px + 2.0)


def _pen(shade: QColor, width: float, dash: str, unit_px: float) -> QPen:
    pen = QPen(shade, width)
    if dash in DASHES_PX:
        # Qt counts dashes in widths of the pen.
        pen.setDashPattern([d / unit_px for d in DASHES_PX[dash]])
    pen.setCapStyle(Qt.PenCapStyle.FlatCap)
    pen.setJoinStyle(Qt.PenJoinStyle.RoundJoin)
    return pen


def stylesheet() -> str:
    """Style sheet of ordinary widgets (set-up panel, buttons, dialogues). Targets are at least 44 px high."""
    p = palette
    return f"""
    QWidget {{ background: {p.BACKGROUND}; color: {p.TEXT}; font-family: 'DejaVu Sans'; font-size: 13px; }}
    QToolTip {{ background: {p.PANEL}; color: {p.TEXT}; border: 1px solid {p.BORDER}; padding: 4px; }}
    QLabel {{ background: transparent; }}
    QLabel[role="title"] {{ font-size: 15px; font-weight: bold; }}
    QLabel[role="muted"] {{ color: {p.MUTED}; font-size: 12px; }}
    QLabel[role="warning"] {{ color: {p.STATUS[Level.MEDIUM]}; }}
    QLabel[role="problem"] {{ color: #FFFFFF; background: {p.STATUS[Level.HIGH]}; padding: 6px; border-radius: 3px; }}
    QPushButton {{ background: #1E2632; border: 1px solid {p.BORDER}; border-radius: 4px; min-height: 42px;
                   padding: 0 10px; }}
    QPushButton:hover {{ background: #28323F; }}
    QPushButton:pressed {{ background: #334052; }}
    QPushButton:checked {{ background: #24435A; border-color: #67E8F9; }}
    QPushButton:focus {{ border-color: #7FD4FF; }}
    QPushButton:disabled {{ color: #5B6472; background: #141922; }}
    QPushButton[role="primary"] {{ background: #24435A; border-color: #4B8FB8; font-weight: bold; }}
    QPushButton[role="primary"]:hover {{ background: #2E5673; }}
    QPushButton[role="primary"]:disabled {{ background: #141922; color: #5B6472; border-color: {p.BORDER}; }}
    QPushButton[role="tool"] {{ font-size: 11px; padding: 0; min-height: 44px; }}
    QPushButton[role="step"] {{ text-align: left; padding-left: 10px; min-height: 44px; border: none;
                                background: transparent; }}
    QPushButton[role="step"]:hover {{ background: #1E2632; }}
    QPushButton[role="step"]:checked {{ background: #24435A; font-weight: bold; }}
    QComboBox, QSpinBox, QLineEdit {{ background: #1E2632; border: 1px solid {p.BORDER}; border-radius: 4px;
                                      min-height: 42px; padding: 0 8px; }}
    QComboBox QAbstractItemView {{ background: {p.PANEL}; selection-background-color: #24435A; }}
    QComboBox QAbstractItemView::item {{ min-height: 44px; }}
    QListWidget, QTableWidget {{ background: {p.PANEL}; border: 1px solid {p.BORDER}; gridline-color: {p.BORDER};
                                 alternate-background-color: #18202B; outline: 0; }}
    QListWidget::item {{ min-height: 44px; padding-left: 6px; }}
    QListWidget::item:selected, QTableWidget::item:selected {{ background: #24435A; color: {p.TEXT}; }}
    QHeaderView::section {{ background: {p.PANEL}; color: {p.MUTED}; border: none;
                            border-bottom: 1px solid {p.BORDER}; padding: 4px; font-size: 11px; }}
    QProgressBar {{ background: #1E2632; border: 1px solid {p.BORDER}; border-radius: 4px; text-align: center;
                    min-height: 22px; }}
    QProgressBar::chunk {{ background: #2E5673; border-radius: 3px; }}
    QScrollBar:vertical {{ background: {p.PANEL}; width: 14px; }}
    QScrollBar::handle:vertical {{ background: #334052; min-height: 44px; border-radius: 4px; }}
    QScrollBar::add-line, QScrollBar::sub-line {{ height: 0; }}
    """
