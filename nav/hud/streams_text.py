"""One line per stream for who looks after the devices: state, rate, losses, and the sender's clock. No Qt."""

from __future__ import annotations

from collections.abc import Iterable

from nav.guidance.health import StreamClock, StreamHealth

__all__ = ["clock_text", "stream_line", "stream_lines"]

#: A clock further off than this is told in seconds.
_SECONDS_FROM_MS = 10_000.0


def clock_text(clock: StreamClock | None) -> str:
    """Offset, jitter, drift, steps and lateness of a stream's stamps."""
    if clock is None or clock.offset_ms is None:
        return "no stamps"
    offset = clock.offset_ms
    parts = [f"clock {offset / 1e3:+.1f} s" if abs(offset) >= _SECONDS_FROM_MS else f"clock {offset:+.1f} ms"]
    if clock.lag_ms is not None:
        parts.append(f"lag {clock.lag_ms:.1f} ms")
    if clock.jitter_ms is not None:
        parts.append(f"jitter {clock.jitter_ms:.1f} ms")
    parts.append("drift \u2013" if clock.drift_ppm is None else f"drift {clock.drift_ppm:+.0f} ppm")
    parts.append(f"set {clock.steps}\u00d7")
    if clock.shift_ms is not None:
        parts.append(f"late {clock.shift_ms:.0f} ms")
    return ", ".join(parts)


def stream_line(stream: StreamHealth) -> str:
    """All that is known of one stream."""
    lost = f"{stream.gaps} gaps, {stream.dropped} dropped, {stream.rejected} out of order, {stream.refused} refused"
    state = stream.state.replace("_", " ")
    rate = f"{stream.rate_hz:.0f} of {stream.nominal_hz:.0f} Hz"
    text = f"{stream.name}: {state}, {rate}; {clock_text(stream.clock)}; {lost}"
    if stream.detail:
        text += f"; {stream.detail}"
    return "\n".join([text, *(f"    ! {f.text}" for f in stream.findings)])


def stream_lines(streams: Iterable[StreamHealth]) -> str:
    """`stream_line` of every stream."""
    return "\n".join(stream_line(s) for s in streams)
