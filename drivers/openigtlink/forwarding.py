"""What a bridge makes of each message: the same bytes, renamed, split into its tools, or turned into version 1. Pure.

Nothing is made up: stamps stay as they are, nothing is sent twice, and a tool whose status cannot be said in version 1
is left out there rather than shown with a pose that means nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from drivers.openigtlink.codec import encode_content
from drivers.openigtlink.contents import (
    POSE_TYPES,
    TRACKING_TYPES,
    QuaternionTrackingContent,
    StatusContent,
    TrackingContent,
    TransformContent,
    unpack_message,
)
from drivers.openigtlink.errors import EncodeError, WireError
from drivers.openigtlink.selection import Filter
from drivers.openigtlink.sink import Kind
from drivers.openigtlink.wire import (
    DEVICE_NAME_BYTES,
    WireMessage,
    header_prefix,
    pack_message,
    parse_header,
    parse_message,
)
from nav.geometry.poses import PoseStatus
from nav.runtime.messages import Message, PoseMessage, ToolReport

__all__ = ["Forwarded", "Forwarding", "RenameError", "renames"]

#: Streams, of which a slow client gets the newest, with how many may wait; everything else is never dropped.
_DEPTH = {**dict.fromkeys(POSE_TYPES, 32), "SENSOR": 32, "IMAGE": 2, "VIDEO": 2, "NDARRAY": 2, "POLYDATA": 2}
_NAME_AT = slice(14, 34)
_IDENTITY = np.eye(4)


class RenameError(ValueError):
    """A renaming that cannot be done."""


def renames(rules: Iterable[str]) -> dict[str, str]:
    """Device names and their new ones, of rules such as ``Tool1=NeedleToTracker``.

    Raises
    ------
    RenameError
        When a rule has another form, a new name cannot be sent (20 bytes), or two devices would get the same one.
    """
    out: dict[str, str] = {}
    for rule in rules:
        old, equals, new = rule.partition("=")
        if not equals or not old or not new:
            raise RenameError(f"renaming {rule!r}: expected OLD=NEW, such as Tool1=NeedleToTracker")
        if old in out:
            raise RenameError(f"renaming {rule!r}: {old} is renamed to {out[old]} already")
        if new in out.values():
            raise RenameError(f"renaming {rule!r}: another device is called {new} already")
        try:
            header_prefix("TRANSFORM", new)
        except EncodeError as error:
            raise RenameError(f"renaming {rule!r}: {error}") from None
        out[old] = new
    return out


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One message to send on.

    Attributes
    ----------
    key : str
        Messages of one key share a queue limit.
    kind, depth
        See `IgtlServer.publish`.
    raw : bytes
        For clients that read version 2, and for all where ``first`` is the same.
    first : bytes or None
        For clients that have not spoken version 2; None: nothing.
    """

    key: str
    kind: Kind
    depth: int
    raw: bytes
    first: bytes | None


@dataclass(slots=True)
class Forwarding:
    """The rules of one bridge, and their counts. Not thread-safe.

    Attributes
    ----------
    wanted : Filter
        What is sent on. Names are those of the source.
    rename : mapping
        See `renames`; applies to devices, and to the tools of TDATA and QTDATA that are split.
    split : bool
        Send each tool of a TDATA or QTDATA as a TRANSFORM, which Slicer shows as it is; in version 1 to clients that
        have not spoken version 2.
    downgrade : bool
        Send everything in version 1 to clients that have not spoken version 2.
    refused : Counter
        Why → messages (or tools) that were not sent on.
    """

    wanted: Filter = Filter()  # noqa: RUF009 - frozen
    rename: Mapping[str, str] = field(default_factory=dict)
    split: bool = False
    downgrade: bool = False
    refused: Counter[str] = field(default_factory=Counter)

    def messages(self, message: Message, raw: bytes | memoryview) -> list[Forwarded]:
        """What to send for a message that was received as ``raw`` and decoded to ``message``."""
        header = parse_header(raw)
        if not self.wanted.takes(header.type_name, header.device):
            self.refused["not asked for"] += 1
            return []
        if self.split and header.type_name in TRACKING_TYPES and isinstance(message, PoseMessage):
            return self._tools(message, header.version)
        if header.device in self.rename:
            raw = _renamed(raw, self.rename[header.device])
        whole = bytes(raw)
        first: bytes | None = whole
        if self.downgrade and header.version == 2:
            first = self._version_1(message, whole)
        kind, depth = self._queue(header.type_name, whole)
        return [Forwarded(f"{header.type_name} {header.device}", kind, depth, whole, first)]

    @staticmethod
    def _queue(type_name: str, raw: bytes) -> tuple[Kind, int]:
        if type_name in _DEPTH:
            return "stream", _DEPTH[type_name]
        # Of keep-alives one that waits is enough; a complaint must arrive.
        return ("stream", 1) if type_name == "STATUS" and _is_ok(raw) else ("reliable", 1)

    def _tools(self, message: PoseMessage, version: int) -> list[Forwarded]:
        out = []
        for report in message.tools:
            name = self.rename.get(report.name, report.name)
            lost = report.status is not PoseStatus.OK or report.matrix is None
            if lost:
                self.refused["lost tools, for version 1"] += 1
            if lost and version == 1:
                continue  # refused, or not seen: silence says so
            try:
                raw = _transform(name, report, message, version)
                first = None if lost else raw if version == 1 else _transform(name, report, message, 1)
            except EncodeError:
                self.refused["names that cannot be sent"] += 1
                continue
            out.append(Forwarded(f"TRANSFORM {name}", "stream", _DEPTH["TRANSFORM"], raw, first))
        return out

    def _version_1(self, message: Message, raw: bytes) -> bytes | None:
        try:
            wire = parse_message(raw)
        except WireError:
            self.refused["cannot be read, for version 1"] += 1
            return None
        content: bytes | memoryview = wire.content
        if isinstance(message, PoseMessage) and any(t.status is not PoseStatus.OK for t in message.tools):
            self.refused["lost tools, for version 1"] += 1
            seen = _without_lost(wire, message)
            if seen is None:
                return None
            content = seen
        return pack_message(wire.type_name, wire.device, content, stamp=wire.stamp)


def _renamed(raw: bytes | memoryview, name: str) -> bytes:
    """The same message under another name: the CRC is that of the body, which stays."""
    out = bytearray(raw)
    out[_NAME_AT] = name.encode("utf-8").ljust(DEVICE_NAME_BYTES, b"\0")
    return bytes(out)


def _is_ok(raw: bytes) -> bool:
    try:
        content = unpack_message(parse_message(raw))
    except WireError:
        return False
    return isinstance(content, StatusContent) and content.code == 1


def _transform(name: str, report: ToolReport, message: PoseMessage, version: int) -> bytes:
    """A tool as TRANSFORM; one that is not seen as the identity with its status, which is how PLUS says it."""
    matrix = _IDENTITY if report.matrix is None else report.matrix
    return encode_content(
        name,
        TransformContent(matrix),
        sender_ns=message.sender_ns,
        version=version,
        metadata={"TransformStatus": report.status.value} if version == 2 else None,
    )


def _without_lost(wire: WireMessage, message: PoseMessage) -> bytes | None:
    """The content of a TDATA or QTDATA with the tools that are seen; None for one tool, which is lost."""
    content = unpack_message(wire)
    seen = [n for n, tool in enumerate(message.tools) if tool.status is PoseStatus.OK]
    if isinstance(content, TrackingContent):
        return TrackingContent(tuple(content.tools[n] for n in seen)).pack()
    if isinstance(content, QuaternionTrackingContent):
        return QuaternionTrackingContent(tuple(content.tools[n] for n in seen)).pack()
    return None
