"""Environment variables that must stand before numba, OpenCV or Qt is imported; the one place that sets them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

__all__ = ["cache_dir", "has_display", "prepare"]


def cache_dir() -> Path:
    """The user's cache folder of this program (``$XDG_CACHE_HOME`` or ``~/.cache``); not created here."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ablation-nav"


def prepare() -> None:
    """Set what is not set already. Idempotent; inherited by processes that are started from here.

    * ``OMP_WAIT_POLICY=PASSIVE``: idle OpenMP threads must not spin on the cores that the live threads need.
    * ``NUMBA_THREADING_LAYER=omp``: numba would otherwise fall back to ``workqueue``, which aborts the process when
      two threads enter a parallel kernel; with this it raises instead, and `doctor` names the missing ``libgomp1``.
    * ``NUMBA_CACHE_DIR``: only where the program's own folder cannot be written, so that compiled kernels are kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform.startswith("linux"):
        os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
    if "NUMBA_CACHE_DIR" not in os.environ and not _can_write(Path(__file__).resolve().parent.parent):
        os.environ["NUMBA_CACHE_DIR"] = str(_kernel_cache())


def _kernel_cache() -> Path:
    folder = cache_dir() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / f"ablation-nav-kernels-{os.getuid()}"
    return folder


def _can_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK)


def has_display() -> bool:
    """True when a window can be opened: a display server is named, or a platform plug-in was chosen by hand."""
    platform = os.environ.get("QT_QPA_PLATFORM", "")
    if platform:
        return platform.split(":")[0] not in ("offscreen", "minimal")
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True
