"""What the screen shows, as one frozen value. No Qt; made by `nav.hud.presentation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from nav.hud.palette import Level

__all__ = ["Alarm", "BullseyeState", "Freshness", "HudState", "Lamp", "Message", "PaneStatus", "Readout"]


class Freshness(Enum):
    """State of the needle's pose for all four panes.

    ``WAITING``: no pose is expected yet (nothing received, not registered, set-up under way): nothing pose-based is
    shown, and it is not an alarm. ``LOST``: a pose that was there is gone or too old.
    """

    NORMAL = "normal"
    STALE = "stale"
    LOST = "lost"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Lamp:
    """One lamp of the top bar. ``glyph`` and ``text`` say what the colour says; ``detail`` is shown on hovering."""

    key: str
    title: str
    level: Level
    text: str
    glyph: str
    flashing: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Readout:
    """One number of the right column. ``value`` is ``---`` when blank; ``level`` is its quality, not an alarm."""

    key: str
    title: str
    value: str
    unit: str
    level: Level
    detail: str = ""
    glyph: str = ""
    big: bool = False


@dataclass(frozen=True, slots=True)
class BullseyeState:
    """Looking along the planned path; mm, axes right and up. ``shown`` False: nothing but the rings."""

    shown: bool
    tip_mm: tuple[float, float] = (0.0, 0.0)
    hub_mm: tuple[float, float] = (0.0, 0.0)
    depth_mm: float = 0.0
    aligned: bool = False
    words: str = ""


@dataclass(frozen=True, slots=True)
class PaneStatus:
    """What every pane draws over its picture.

    ``needle_shown`` False forbids every overlay that rests on a pose; ``ultrasound_shown`` False forbids a picture
    into which ultrasound is blended. ``max_arrival_age_ms`` is the limit above which a picture's own pose is too old.
    """

    freshness: Freshness
    banner: str
    level: Level
    needle_shown: bool
    ultrasound_shown: bool
    max_arrival_age_ms: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition that stands now. ``text``: condition, then action."""

    code: str
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """The one message of the bottom line."""

    level: Level
    text: str
    code: str = ""
    flashing: bool = False
    count: int = 0


@dataclass(frozen=True, slots=True)
class HudState:
    """Everything that is shown at ``now_ns``.

    Attributes
    ----------
    acknowledged : frozenset of str
        The acknowledged alarms that still stand; hand it back with the next call, so that an alarm that comes again
        flashes again.
    shown : mapping of str to float
        The number each readout shows (hysteresis); hand it back with the next call. A blank readout has no entry.
    flash_on : bool
        Phase of the flashing at ``now_ns``.
    """

    now_ns: int
    lamps: tuple[Lamp, ...]
    readouts: tuple[Readout, ...]
    panes: PaneStatus
    bullseye: BullseyeState
    message: Message
    alarms: tuple[Alarm, ...] = ()
    acknowledged: frozenset[str] = frozenset()
    shown: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    flash_on: bool = True
    guiding: bool = False
    ablating: bool = False
    recording: bool = False
    sequence: int = -1
