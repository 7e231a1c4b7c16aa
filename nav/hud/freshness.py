"""How fresh the needle and the ultrasound are at a clock reading. Pure, derived anew at each call: nothing sticks."""

from __future__ import annotations

from dataclasses import dataclass

from nav.guidance.health import StreamHealth
from nav.hud.hud_state import Freshness
from nav.runtime.snapshot import NavigationSnapshot

__all__ = [
    "COMPUTE_LIMIT_MS",
    "ULTRASOUND_LIMIT_MS",
    "NeedleFreshness",
    "image_streams",
    "is_guiding",
    "needle_freshness",
    "needle_streams",
    "stream_age_ms",
    "tool_streams",
    "ultrasound_stream",
    "ultrasound_visible",
]

#: A snapshot older than this is not shown any more: the compute thread has stopped.
COMPUTE_LIMIT_MS = 250.0

#: An ultrasound overlay older than this disappears, whatever the stream's own limit.
ULTRASOUND_LIMIT_MS = 200.0

_DEFAULT_STALE_MS = 100.0
_DEFAULT_LOST_MS = 250.0
_IMAGE_KINDS = frozenset({"image", "images", "ultrasound", "fluoro"})


@dataclass(frozen=True, slots=True)
class NeedleFreshness:
    """Result of `needle_freshness`.

    ``cause`` is a stable word: ``""``, ``start``, ``compute``, ``link``, ``tool``, ``age``, ``waiting``, ``gate``,
    ``gap``. ``age_ms`` is None when there is no pose.
    """

    state: Freshness
    needle_shown: bool
    cause: str
    age_ms: float | None
    stale_ms: float
    lost_ms: float


def image_streams(snapshot: NavigationSnapshot) -> tuple[StreamHealth, ...]:
    """The streams that carry images."""
    return tuple(s for s in snapshot.streams if s.kind in _IMAGE_KINDS)


def tool_streams(snapshot: NavigationSnapshot) -> tuple[StreamHealth, ...]:
    """The streams that carry poses."""
    return tuple(s for s in snapshot.streams if s.kind not in _IMAGE_KINDS)


def needle_streams(snapshot: NavigationSnapshot) -> tuple[StreamHealth, ...]:
    """The pose streams the needle's pose rests on: the needle's own and the patient reference's.

    They are told by name (``NeedleToTracker`` for the frame ``NeedleTip``); when none matches, every pose stream
    counts, which can only tighten.
    """
    tools = tool_streams(snapshot)
    stem = snapshot.needle.name.removesuffix("Tip") or snapshot.needle.name
    own = tuple(s for s in tools if s.name.startswith(stem) or s.name.startswith("Reference"))
    return own if any(s.name.startswith(stem) for s in own) else tools


def ultrasound_stream(snapshot: NavigationSnapshot) -> StreamHealth | None:
    """The ultrasound's stream: the one called so, else the first image stream that is no fluoroscopy."""
    images = image_streams(snapshot)
    for stream in images:
        if stream.kind == "ultrasound" or "ultrasound" in stream.name.lower():
            return stream
    for stream in images:
        if stream.kind != "fluoro" and "fluoro" not in stream.name.lower():
            return stream
    return None


def stream_age_ms(stream: StreamHealth, snapshot: NavigationSnapshot, now_ns: int) -> float:
    """Age of the newest item of ``stream`` at ``now_ns``: its age in the snapshot plus the snapshot's own age."""
    return stream.age_ms + max(0.0, (now_ns - snapshot.now_ns) / 1e6)


def is_guiding(snapshot: NavigationSnapshot) -> bool:
    """True once guidance was started: then a missing pose is an alarm, before that it is a step still to do."""
    return "guide" in snapshot.setup.done


def needle_freshness(snapshot: NavigationSnapshot | None, now_ns: int) -> NeedleFreshness:
    """State of the needle's pose at ``now_ns`` (local monotonic).

    Both times of the pose count: the arrival of its last byte and the time it was acquired, whichever is older.
    """
    if snapshot is None:
        return NeedleFreshness(Freshness.WAITING, False, "start", None, _DEFAULT_STALE_MS, _DEFAULT_LOST_MS)
    streams = needle_streams(snapshot)
    stale_ms = min((s.stale_ms for s in streams), default=_DEFAULT_STALE_MS)
    lost_ms = min((s.lost_ms for s in streams), default=_DEFAULT_LOST_MS)
    needle = snapshot.needle

    def result(state: Freshness, shown: bool, cause: str, age_ms: float | None = None) -> NeedleFreshness:
        return NeedleFreshness(state, shown, cause, age_ms, stale_ms, lost_ms)

    if (now_ns - snapshot.now_ns) / 1e6 > COMPUTE_LIMIT_MS:
        return result(Freshness.LOST, False, "compute")
    # Before guidance a missing needle is not an alarm: it may lie on the table while landmarks are touched.
    gone = Freshness.LOST if is_guiding(snapshot) else Freshness.WAITING
    if any(s.state == "link_lost" for s in streams):
        return result(gone, False, "link")
    if any(s.state == "lost" for s in streams):
        return result(gone, False, "tool")
    if needle.pose is None:
        if not streams or any(s.state == "waiting" for s in streams):
            return result(gone, False, "waiting")
        age_ms = max(stream_age_ms(s, snapshot, now_ns) for s in streams)
        if age_ms > lost_ms:
            return result(gone, False, "age", age_ms)
        if age_ms > stale_ms or any(s.state == "stale" for s in streams):
            return result(Freshness.STALE, False, "gap", age_ms)
        return result(Freshness.WAITING, False, "gate", age_ms)
    age_ms = (now_ns - min(needle.arrival_ns, needle.acquired_ns)) / 1e6
    if age_ms > lost_ms:
        return result(Freshness.LOST, False, "age", age_ms)
    if age_ms > stale_ms or any(s.state == "stale" for s in streams):
        return result(Freshness.STALE, True, "", age_ms)
    return result(Freshness.NORMAL, True, "", age_ms)


def ultrasound_visible(snapshot: NavigationSnapshot | None, now_ns: int) -> bool:
    """May a picture with ultrasound blended in be shown? Its own age decides; it is never shown frozen."""
    if snapshot is None or snapshot.image is None or (now_ns - snapshot.now_ns) / 1e6 > COMPUTE_LIMIT_MS:
        return False
    stream = ultrasound_stream(snapshot)
    if stream is not None and stream.state in ("lost", "link_lost", "waiting"):
        return False
    # A slow scanner (5 fps) has frames older than the fixed limit in normal operation: its own stale limit counts then.
    limit_ms = max(ULTRASOUND_LIMIT_MS, stream.stale_ms) if stream is not None else ULTRASOUND_LIMIT_MS
    return (now_ns - snapshot.image.arrival_ns) / 1e6 <= limit_ms
