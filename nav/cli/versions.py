"""Which software, on which versions, with which configuration: stands in recordings, summaries and screenshots."""

from __future__ import annotations

from importlib.metadata import version

from nav.config.load import config_sha256
from nav.config.room import RoomConfig

__all__ = ["VERSION", "software"]

VERSION = version("ablation-nav")


def software(room: RoomConfig) -> dict[str, str]:
    """``version``, ``config_sha256`` and the versions that numbers depend on."""
    return {
        "version": VERSION,
        "config_sha256": config_sha256(room),
        "numpy": version("numpy"),
        "numba": version("numba"),
        "scipy": version("scipy"),
    }
