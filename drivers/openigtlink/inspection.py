"""What a server really sends, stream by stream: counts, rates, gaps, stamps, values, frames, and what looks wrong.

`StreamTable` is fed message by message. It opens no socket and reads no clock, so the same bytes and arrival times give
the same report; ``docs/igtl-json.md`` describes it.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from drivers.openigtlink.contents import (
    POSE_TYPES,
    TRACKING_TYPES,
    Content,
    ImageContent,
    content_class,
    unpack_message,
)
from drivers.openigtlink.errors import WireError
from drivers.openigtlink.frame_groups import FrameGroups
from drivers.openigtlink.image_checks import Finding
from drivers.openigtlink.in_short import in_short
from drivers.openigtlink.plausibility import PlausibilityChecks
from drivers.openigtlink.wire import WireMessage, parse_header, parse_message
from nav.config.room import SourceConfig
from nav.runtime.messages import LinkMessage, LinkState, Message, PoseMessage

__all__ = ["STREAMS", "StreamRow", "StreamTable"]

#: (type, device) pairs followed; a sender that invents names must not fill the memory.
STREAMS = 1024
#: Changes of the link that are kept: the first and the newest of these.
LINKS = 256
#: Arrivals behind the present rate and the usual interval.
RECENT = 256
#: An interval longer than so many usual ones is a gap ...
GAP_PERIODS = 3.0
#: ... once so many intervals say what is usual.
GAP_AFTER = 10
#: The usual interval is computed anew after so many arrivals: a median for every message would cost more than the rest.
USUAL_EVERY = 16
#: Share of intervals that are gaps from which on a stream is called uneven.
GAP_SHARE = 0.01


class StreamRow:
    """One (type, device) as it stands. Times are local monotonic ns.

    Attributes
    ----------
    count, size : int
        Messages; their bytes, headers included.
    version : int
        Header version of the newest message; ``versions`` all that came.
    first_ns, last_ns : int
        Arrival of the first and the newest message.
    gaps, longest_ns : int
        Intervals longer than three usual ones, and the longest interval of all; within a connection.
    stamped : int
        Messages that had a stamp.
    tools : dict
        TDATA and QTDATA: name of a tool → messages that held it.
    statuses : Counter
        Poses by their status, "(none stated)" for those without one.
    value : str
        The newest content in short.
    """

    def __init__(self, type_name: str, device: str) -> None:
        self.type_name, self.device = type_name, device
        self.count = self.size = 0
        self.version = 0
        self.versions: set[int] = set()
        self.first_ns = self.last_ns = 0
        self.gaps = self.longest_ns = 0
        self.intervals = 0
        self.span_ns = 0  # sum of the intervals
        self.stamped = 0
        self.sender_ns: int | None = None
        self.tools: dict[str, int] = {}
        self.statuses: Counter[str] = Counter()
        self.value = ""
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT)  # (interval, bytes)
        self._usual_ns: float | None = None
        self._fresh = True

    def take(self, wire_version: int, sender_ns: int | None, size: int, arrival_ns: int) -> None:
        """Count one message."""
        if self.count == 0:
            self.first_ns = arrival_ns
        elif not self._fresh:
            self._interval(max(arrival_ns - self.last_ns, 0), size)
        self._fresh = False
        self.count += 1
        self.size += size
        self.version = wire_version
        self.versions.add(wire_version)
        self.last_ns = arrival_ns
        self.sender_ns = sender_ns
        self.stamped += sender_ns is not None

    def reconnected(self) -> None:
        """The time until the next message is the link's, not the stream's."""
        self._fresh = True

    def _interval(self, interval_ns: int, size: int) -> None:
        self.intervals += 1
        self.span_ns += interval_ns
        self.longest_ns = max(self.longest_ns, interval_ns)
        usual = self._usual_ns
        if usual is not None and interval_ns > GAP_PERIODS * usual:
            self.gaps += 1
        self._recent.append((interval_ns, size))
        if self.intervals >= GAP_AFTER and (usual is None or self.intervals % USUAL_EVERY == 0):
            self._usual_ns = statistics.median(i for i, _ in self._recent)

    @property
    def rate_hz(self) -> float | None:
        """Messages per second over all connections, without the pauses between them; None before the second."""
        return self.intervals / self.span_ns * 1e9 if self.span_ns > 0 else None

    @property
    def usual_ms(self) -> float | None:
        """Median interval of the newest messages; None before `GAP_AFTER` intervals."""
        return None if self._usual_ns is None else self._usual_ns * 1e-6

    @property
    def bytes_per_s(self) -> float | None:
        """Over the newest messages; None before the second."""
        span_ns = sum(i for i, _ in self._recent)
        return sum(n for _, n in self._recent) / span_ns * 1e9 if span_ns > 0 else None

    def age_ms(self, now_ns: int) -> float:
        """Since the newest message arrived."""
        return max(now_ns - self.last_ns, 0) * 1e-6


class StreamTable:
    """Follows everything that one server sends. Not thread-safe; deterministic.

    Parameters
    ----------
    options : SourceConfig or None
        Options of the source in force, for the plausibility checks.

    Attributes
    ----------
    received, size : int
        Messages and their bytes.
    connections, broken : int
        Connections made; those that were given up because what came was no message.
    """

    def __init__(self, options: SourceConfig | None = None) -> None:
        self._options = options
        self._rows: dict[tuple[str, str], StreamRow] = {}
        self._checks = PlausibilityChecks(options)
        self._links: list[tuple[int, LinkState, str]] = []
        self._links_left_out = 0
        self._frames = FrameGroups()
        self._utc_minus_local_ns: int | None = None
        self._unfollowed = 0
        self.received = 0
        self.size = 0
        self.connections = 0
        self.broken = 0
        self._last_broken = ""

    # -- taking in -----------------------------------------------------------------------------------------------

    def take(self, message: Message, raw: bytes | memoryview | None, *, utc_minus_local_ns: int | None = None) -> None:
        """Take one message in.

        Parameters
        ----------
        message : Message
            As the source delivers it, changes of the link included; arrivals must not fall.
        raw : bytes, memoryview or None
            As received; None for a change of the link.
        utc_minus_local_ns : int or None
            Local UTC minus local monotonic clock, to compare the sender's clock with this one.
        """
        if isinstance(message, LinkMessage):
            self._link(message)
            return
        if raw is None:
            raise ValueError(f"message {message.sequence} of {message.device!r}: its bytes are missing")
        self._utc_minus_local_ns = utc_minus_local_ns
        self.received += 1
        self.size += len(raw)
        try:
            wire: WireMessage | None = parse_message(raw)
        except WireError:
            wire = None  # whole, but what stands in it contradicts itself: ``message`` says why
        header = parse_header(raw)
        row = self._row(header.type_name, message.device)
        if row is not None:
            row.take(header.version, message.sender_ns, len(raw), message.arrival_ns)
        content: Content | None = None
        if wire is not None:
            try:
                content = unpack_message(wire)
            except WireError:
                content = None
            self._checks.observe(message, wire, content, utc_minus_local_ns=utc_minus_local_ns)
        if row is not None:
            row.value = in_short(message, content)
            if isinstance(message, PoseMessage):
                self._poses(row, message)
            elif isinstance(content, ImageContent):
                self._frames.image(message.device)

    def _row(self, type_name: str, device: str) -> StreamRow | None:
        row = self._rows.get((type_name, device))
        if row is None:
            if len(self._rows) >= STREAMS:
                self._unfollowed += 1
                return None
            row = self._rows[type_name, device] = StreamRow(type_name, device)
        return row

    def _poses(self, row: StreamRow, message: PoseMessage) -> None:
        several = row.type_name in TRACKING_TYPES
        for report in message.tools:
            row.statuses[report.status.value if report.status_stated or report.problem else "(none stated)"] += 1
            if several and (report.name in row.tools or len(row.tools) < STREAMS):
                row.tools[report.name] = row.tools.get(report.name, 0) + 1
            self._frames.transform(report.name)

    def _link(self, message: LinkMessage) -> None:
        if message.state is LinkState.CONNECTED:
            self.connections += 1
            for row in self._rows.values():
                row.reconnected()
        elif message.state is LinkState.FAILED and self.connected:  # else it could not even connect
            self.broken += 1
            self._last_broken = message.detail
        if len(self._links) >= LINKS:
            del self._links[1]
            self._links_left_out += 1
        self._links.append((message.arrival_ns, message.state, message.detail))

    # -- reading out ---------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the newest change of the link is a connection."""
        return bool(self._links) and self._links[-1][1] is LinkState.CONNECTED

    @property
    def last_link(self) -> tuple[LinkState, str] | None:
        """The newest change of the link."""
        return self._links[-1][1:] if self._links else None

    @property
    def frames(self) -> FrameGroups:
        """The frames that the names speak of."""
        return self._frames

    def rows(self) -> list[StreamRow]:
        """All streams, by type and device: poses first, images next, then the rest."""

        def place(row: StreamRow) -> tuple[int, str, str]:
            rank = 0 if row.type_name in POSE_TYPES else 1 if row.type_name in ("IMAGE", "VIDEO") else 2
            return rank, row.type_name, row.device

        return sorted(self._rows.values(), key=place)

    def clock_offset_ms(self, device: str) -> float | None:
        """The sender's clock minus this computer's, less the smallest delay of the device; None without stamps."""
        timing = self._checks.timing(device)
        if timing is None or self._utc_minus_local_ns is None:
            return None
        return -(timing.offset_ns + self._utc_minus_local_ns) * 1e-6

    def jitter_ms(self, device: str) -> float | None:
        """95th percentile of the delay above the smallest one; None without stamps."""
        timing = self._checks.timing(device)
        return None if timing is None else timing.jitter_ms

    def findings(
        self, dropped: Mapping[tuple[str, str], int] | None = None, skipped: Mapping[str, int] | None = None
    ) -> tuple[Finding, ...]:
        """What looks wrong, warnings first.

        Parameters
        ----------
        dropped : mapping or None
            (type, device) → images that were given up for newer ones, of the source's statistics.
        skipped : mapping or None
            Type → messages too large to keep.
        """
        found = [*self._checks.findings(), *self._stream_findings()]
        for (type_name, device), count in (dropped or {}).items():
            found.append(
                Finding(
                    "images_dropped",
                    device,
                    f"{type_name} came faster than this program took it; the newest were kept",
                    f"{count} left out",
                    "none",
                    "Look at fewer streams at once, or on a computer with less to do",
                    "note",
                    count,
                )
            )
        for type_name, count in (skipped or {}).items():
            found.append(
                Finding(
                    "message_too_large",
                    "",
                    f"{type_name} too large to keep was read past",
                    f"{count} messages",
                    "docs/openigtlink.md, sizes",
                    "Send it in parts, or as a type made for bulk (NDARRAY, IMAGE)",
                    count=count,
                )
            )
        return tuple(sorted(found, key=lambda f: (f.severity != "warning", f.code, f.device)))

    def _stream_findings(self) -> list[Finding]:
        found = []
        if self.broken:
            found.append(
                Finding(
                    "framing",
                    "",
                    "bytes that are no message: the connection was given up each time",
                    f"{self.broken} times; last: {self._last_broken}",
                    "never",
                    "Correct the sender: header of 58 bytes, size and CRC of the body (CRC-64, ECMA-182)",
                    count=self.broken,
                )
            )
        by_name: dict[str, list[str]] = {}
        for row in self._rows.values():
            by_name.setdefault(row.device, []).append(row.type_name)
            found += self._row_findings(row)
        for device, types in by_name.items():
            if len(types) > 1 and set(types) - {"STATUS"} != set() and len(set(types) - {"STATUS", "STRING"}) > 1:
                found.append(
                    Finding(
                        "name_shared",
                        device,
                        "several types under one name: some clients keep only one message per name",
                        ", ".join(sorted(types)),
                        "one type",
                        "Give each its own device name",
                        "note",
                    )
                )
        if self._unfollowed:
            found.append(
                Finding(
                    "too_many_names",
                    "",
                    "more streams than can be followed",
                    f"{self._unfollowed} messages of further names",
                    f"{STREAMS} pairs of type and name",
                    "Let the sender keep its device names",
                )
            )
        return found

    def _row_findings(self, row: StreamRow) -> list[Finding]:
        found = []
        if content_class(row.type_name) is None:
            found.append(
                Finding(
                    "type_unknown",
                    row.device,
                    f"{row.type_name} is no type of the protocol: kept, not understood",
                    f"{row.count} messages",
                    "types of OpenIGTLink 1 to 3",
                    "If it is meant to be one, correct its name",
                    "note",
                    row.count,
                )
            )
        if not row.device and row.type_name not in ("STATUS", "CAPABILITY"):
            found.append(
                Finding(
                    "name_empty",
                    "",
                    f"{row.type_name} without a device name: nothing can be told apart",
                    "empty",
                    "1 to 20 bytes",
                    "Let the sender name its devices",
                )
            )
        usual = row.usual_ms
        periodic = row.type_name in POSE_TYPES | {"IMAGE", "VIDEO"}
        if usual is not None and row.gaps > GAP_SHARE * row.intervals and periodic:
            found.append(
                Finding(
                    "gaps",
                    row.device,
                    f"{row.type_name} comes unevenly",
                    f"{row.gaps} gaps in {row.intervals} intervals, the longest {row.longest_ns * 1e-6:.0f} ms",
                    f"{GAP_PERIODS:g} x the usual {usual:.1f} ms in {GAP_SHARE:.0%} of them",
                    "Look at the sender's load and the network; lost tools are told as gaps where no status says so",
                    "note",
                    row.gaps,
                )
            )
        return found

    def report(
        self,
        now_ns: int,
        *,
        since_ns: int,
        dropped: Mapping[tuple[str, str], int] | None = None,
        skipped: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Everything as one JSON object (``docs/igtl-json.md``).

        Parameters
        ----------
        now_ns, since_ns : int
            Local monotonic time now, and of the beginning, to which ``at_s`` of link changes refers.
        """
        dropped, skipped = dropped or {}, skipped or {}
        return {
            "duration_s": _rounded((now_ns - since_ns) * 1e-9, 3),
            "connected": self.connected,
            "connections": self.connections,
            "link": [
                {"at_s": _rounded((at_ns - since_ns) * 1e-9, 3), "state": state.value, "detail": detail}
                for at_ns, state, detail in self._links
            ],
            "link_left_out": self._links_left_out,
            "received": self.received,
            "bytes": self.size,
            "clock_steps": self._checks.clock_steps,
            "streams": [self._stream(row, now_ns, dropped.get((row.type_name, row.device), 0)) for row in self.rows()],
            "frames": self._frames.report(),
            "skipped": dict(skipped),
            "findings": [_finding(finding) for finding in self.findings(dropped, skipped)],
        }

    def _stream(self, row: StreamRow, now_ns: int, dropped: int) -> dict[str, Any]:
        timing = self._checks.timing(row.device)
        return {
            "type": row.type_name,
            "device": row.device,
            "understood": content_class(row.type_name) is not None,
            "versions": sorted(row.versions),
            "count": row.count,
            "dropped": dropped,
            "bytes": row.size,
            "bytes_per_s": _rounded(row.bytes_per_s, 0),
            "rate_hz": _rounded(row.rate_hz, 2),
            "usual_interval_ms": _rounded(row.usual_ms, 3),
            "age_ms": _rounded(row.age_ms(now_ns), 1),
            "gaps": row.gaps,
            "longest_interval_ms": _rounded(row.longest_ns * 1e-6, 3) if row.intervals else None,
            "stamps": {
                "stamped": row.stamped,
                "newest_ns": row.sender_ns,
                "offset_ms": _rounded(self.clock_offset_ms(row.device), 3),
                "lag_ms": _rounded(timing.lag_ms if timing else None, 3),
                "jitter_ms": _rounded(timing.jitter_ms if timing else None, 3),
                "drift_ppm": _rounded(timing.drift_ppm if timing else None, 1),
            },
            "tools": row.tools,
            "statuses": dict(row.statuses),
            "value": row.value,
        }


def _finding(finding: Finding) -> dict[str, Any]:
    out = asdict(finding)
    del out["by_every_item"]
    return out


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
