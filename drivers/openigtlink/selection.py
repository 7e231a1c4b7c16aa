"""Which messages are meant, by type and device name. Pure."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

__all__ = ["Filter"]


@dataclass(frozen=True, slots=True)
class Filter:
    """Shell patterns (``*ToTracker``) of message types and of device names; empty: all."""

    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def takes(self, type_name: str, device: str) -> bool:
        """Whether a message is meant."""
        return _any(self.types, type_name) and _any(self.names, device)


def _any(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
