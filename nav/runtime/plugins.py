"""Finds drivers by entry point: ``nav`` never imports them by name."""

from __future__ import annotations

from importlib.metadata import entry_points

from nav.config.room import SourceConfig
from nav.runtime.clock import Clock
from nav.runtime.messages import Source

__all__ = ["DriverNotFoundError", "make_source", "source_drivers"]

GROUP = "ablation_nav.sources"


class DriverNotFoundError(LookupError):
    """A source names a driver that is not installed."""


def source_drivers() -> tuple[str, ...]:
    """Names of the installed source drivers."""
    return tuple(sorted({e.name for e in entry_points(group=GROUP)}))


def make_source(config: SourceConfig, clock: Clock) -> Source:
    """Build the source of a configuration with its driver.

    Raises
    ------
    DriverNotFoundError
    """
    for entry in entry_points(group=GROUP):
        if entry.name == config.driver:
            source: Source = entry.load()(config, clock)
            return source
    known = ", ".join(source_drivers()) or "none"
    raise DriverNotFoundError(f"source {config.name}: driver {config.driver!r} is not installed; installed: {known}")
