"""Read a recording back: finished files, and files whose end is missing because the program was killed.

The file is walked record by record from its beginning and never by its summary, so a missing end costs the end and
nothing else: every message that lies complete in the file is read, even from a chunk that is cut off. A record that
contradicts itself or a chunk whose CRC does not match is damage, not a missing end, and is refused with its place.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mcap.opcode import Opcode
from mcap.records import Chunk
from mcap.stream_reader import get_chunk_data_stream

from nav.runtime.events import OperatorEvent, event_from_dict
from nav.runtime.messages import LinkMessage, LinkState
from nav.runtime.recorder import PROFILE

__all__ = ["RawMessage", "RecordedEvent", "Recording", "RecordingError", "Tick"]

MAGIC = bytes((137, 77, 67, 65, 80, 48, 13, 10))
_RECORD = struct.Struct("<BQ")
_MESSAGE = struct.Struct("<HIQQ")
_CHUNK = struct.Struct("<QQQI")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class RecordingError(ValueError):
    """A file that cannot be read as a recording; the message names the file, the place and what is wrong."""


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as received. ``sent_ns`` is the sender's stamp (UTC ns), or the arrival when there was none."""

    source: str
    sequence: int
    arrival_ns: int
    sent_ns: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An operator event, and the tick that took it in."""

    tick: int
    now_ns: int
    event: OperatorEvent


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick rested on and gave; see `Recorder.tick`."""

    sequence: int
    now_ns: int
    cut: dict[str, int]
    events: int
    navigation: dict[str, float | None] | None
    overflowed: dict[str, tuple[int, ...]]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Item:
    topic: str
    sequence: int
    log_ns: int
    publish_ns: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class _ChunkPlace:
    start: int  # of the record's content
    end: int  # of the record's content, or of the file when it is cut off
    whole: bool


class Recording:
    """An open recording. Use as a context manager, or `close` it.

    Attributes
    ----------
    path : Path
    complete : bool
        False when the end is missing: the recording program was killed, or the file was cut.
    cut_off_bytes : int
        Bytes at the end that belong to a record that is not complete.
    metadata : dict
        What `Recorder` was given, and ``started`` {monotonic_ns, utc_ns}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complete = False
        self.cut_off_bytes = 0
        self.metadata: dict[str, Any] = {}
        self._attachments: dict[str, tuple[int, int]] = {}
        self._chunks: list[_ChunkPlace] = []
        self._topics: dict[int, str] = {}
        self._verified: set[int] = set()
        try:
            with open(path, "rb") as file:
                if file.seek(0, 2) == 0:
                    raise RecordingError(f"{path}: the file is empty")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RecordingError(f"{path}: cannot be read: {error.strerror or error}") from None
        self._view = memoryview(self._map)
        try:
            self._walk()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Open a recording.

        Raises
        ------
        RecordingError
            When it cannot be read, is no MCAP file, was made by another program, or is damaged.
        """
        return cls(Path(path))

    def close(self) -> None:
        """Let go of the file. Data handed out before stays valid."""
        self._view.release()
        with contextlib.suppress(BufferError):  # an iterator still holds a part; the map goes with it
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- the walk ------------------------------------------------------------------------------------------------

    def _damaged(self, at: int, what: str) -> RecordingError:
        return RecordingError(f"{self.path}: damaged at byte {at}: {what}")

    def _walk(self) -> None:
        view, size = self._view, len(self._view)
        head = bytes(view[: len(MAGIC)])
        if head != MAGIC[: len(head)]:
            raise RecordingError(f"{self.path}: not a recording (it does not begin like an MCAP file)")
        at = len(MAGIC)
        seen_header = False
        while at + _RECORD.size <= size:
            opcode, length = _RECORD.unpack_from(view, at)
            start, end = at + _RECORD.size, at + _RECORD.size + length
            if opcode == 0:
                if bytes(view[at:]).strip(b"\0"):
                    raise self._damaged(at, "a record of type 0")
                break  # space that the file system gave but that was never written (a power cut)
            whole = end <= size
            if not seen_header:
                if opcode != Opcode.HEADER:
                    raise self._damaged(at, f"the first record is of type {opcode}, expected the header")
                if not whole:
                    break
                profile, _ = self._string(start, end)
                if profile != PROFILE:
                    raise RecordingError(
                        f"{self.path}: an MCAP file with profile {profile!r}, expected {PROFILE!r}; "
                        "it was not made by this program, or by another version of it"
                    )
                seen_header = True
            elif opcode == Opcode.CHUNK:
                self._chunks.append(_ChunkPlace(start, min(end, size), whole))
            elif opcode == Opcode.METADATA and whole:
                self._read_metadata(start, end)
            elif opcode == Opcode.ATTACHMENT and whole:
                self._index_attachment(start, end)
            elif opcode == Opcode.FOOTER and whole:
                self.complete = bytes(view[end : end + len(MAGIC)]) == MAGIC
                self.cut_off_bytes = 0 if self.complete else size - end
                return
            if not whole:
                break
            at = end
        self.cut_off_bytes = size - at

    def _string(self, at: int, end: int) -> tuple[str, int]:
        """A length-prefixed UTF-8 string inside a record that ends at ``end``, and the place after it."""
        if at + 4 <= end:
            (length,) = _U32.unpack_from(self._view, at)
            if at + 4 + length <= end:
                try:
                    return str(self._view[at + 4 : at + 4 + length], "utf-8"), at + 4 + length
                except UnicodeDecodeError:
                    raise self._damaged(at, "text that is not UTF-8") from None
        raise self._damaged(at, "a text longer than its record")

    def _read_metadata(self, start: int, end: int) -> None:
        name, at = self._string(start, end)
        if name != "session":
            return
        at += 4
        while at < end:
            key, at = self._string(at, end)
            text, at = self._string(at, end)
            try:
                self.metadata[key] = json.loads(text)
            except ValueError:
                raise self._damaged(at, f"session metadata {key!r} is not JSON") from None

    def _index_attachment(self, start: int, end: int) -> None:
        name, at = self._string(start + 16, end)
        _, at = self._string(at, end)
        if at + 8 > end:
            raise self._damaged(at, f"attachment {name!r} ends too early")
        (length,) = _U64.unpack_from(self._view, at)
        if at + 8 + length + 4 != end:
            raise self._damaged(at, f"attachment {name!r}: {length} bytes stated, {end - at - 12} there")
        (crc,) = _U32.unpack_from(self._view, end - 4)
        if crc and zlib.crc32(self._view[start : end - 4]) != crc:
            raise self._damaged(start, f"attachment {name!r}: the CRC does not match")
        self._attachments[name] = (at + 8, at + 8 + length)

    def _chunk_records(self, place: _ChunkPlace) -> memoryview:
        """The records inside a chunk; of one that is cut off, what there is."""
        if place.start + _CHUNK.size + 4 > place.end:
            if place.whole:
                raise self._damaged(place.start, "a chunk too short for its own head")
            return memoryview(b"")
        _, _, _, crc = _CHUNK.unpack_from(self._view, place.start)
        if not place.whole:
            (length,) = _U32.unpack_from(self._view, place.start + _CHUNK.size)
            if length or place.start + _CHUNK.size + 12 > place.end:
                return memoryview(b"")  # compressed: a part of it cannot be read
            return self._view[place.start + _CHUNK.size + 12 : place.end]
        compression, at = self._string(place.start + _CHUNK.size, place.end)
        if at + 8 > place.end or at + 8 + _U64.unpack_from(self._view, at)[0] != place.end:
            raise self._damaged(place.start, "a chunk whose length contradicts its record")
        records = self._view[at + 8 : place.end]
        if compression:
            records = self._decompress(place, compression, bytes(records))
        if crc and place.start not in self._verified:
            if zlib.crc32(records) != crc:
                raise self._damaged(place.start, "the CRC of a chunk does not match its content")
            self._verified.add(place.start)
        return records

    def _decompress(self, place: _ChunkPlace, compression: str, data: bytes) -> memoryview:
        # This program does not compress, but the usual tools for the format may have done so afterwards.
        start_ns, end_ns, size, _ = _CHUNK.unpack_from(self._view, place.start)
        chunk = Chunk(compression, data, end_ns, start_ns, 0, size)
        try:
            stream, length = get_chunk_data_stream(chunk)
            return memoryview(stream.read(length))
        except Exception as error:
            raise self._damaged(place.start, f"a chunk compressed with {compression}: {error}") from None

    def _items(self, wanted: str) -> Iterator[_Item]:
        """Every complete message whose topic begins with ``wanted``, in the order of the file."""
        for place in self._chunks:
            view = self._chunk_records(place)
            at, size = 0, len(view)
            while at + _RECORD.size <= size:
                opcode, length = _RECORD.unpack_from(view, at)
                start, end = at + _RECORD.size, at + _RECORD.size + length
                if end > size:
                    if place.whole:
                        raise self._damaged(place.start, f"a record of {length} bytes in a chunk reaches beyond it")
                    break
                if opcode == Opcode.CHANNEL:
                    self._read_channel(view, start, end)
                elif opcode == Opcode.MESSAGE:
                    if length < _MESSAGE.size:
                        raise self._damaged(place.start, f"a message record of {length} bytes")
                    channel, sequence, log_ns, publish_ns = _MESSAGE.unpack_from(view, start)
                    topic = self._topics.get(channel)
                    if topic is None:
                        raise self._damaged(place.start, f"a message of channel {channel}, which is not declared")
                    if topic.startswith(wanted):
                        yield _Item(topic, sequence, log_ns, publish_ns, view[start + _MESSAGE.size : end])
                at = end

    def _read_channel(self, view: memoryview, start: int, end: int) -> None:
        if start + 8 <= end:
            (number,) = _U16.unpack_from(view, start)
            (length,) = _U32.unpack_from(view, start + 4)
            if start + 8 + length <= end:
                self._topics[number] = str(view[start + 8 : start + 8 + length], "utf-8", "replace")
                return
        raise RecordingError(f"{self.path}: damaged: a channel record of {end - start} bytes")

    def _json(self, item: _Item) -> dict[str, Any]:
        try:
            data = json.loads(bytes(item.data))
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise RecordingError(f"{self.path}: {item.topic} #{item.sequence}: not a JSON object")
        return data

    # -- what is in it -------------------------------------------------------------------------------------------

    @property
    def attachments(self) -> tuple[str, ...]:
        """Names of the attached files."""
        return tuple(self._attachments)

    def attachment(self, name: str) -> bytes:
        """Content of an attached file; the newest of that name. `RecordingError` names what is there instead."""
        place = self._attachments.get(name)
        if place is None:
            there = ", ".join(self._attachments) or "none"
            missing = "" if self.complete else " (the end of the recording is missing)"
            raise RecordingError(f"{self.path}: no attachment {name!r}{missing}; there: {there}")
        return bytes(self._view[place[0] : place[1]])

    def inputs(self) -> Iterator[RawMessage | LinkMessage]:
        """Everything the sources delivered, in the order of the file (each source in the order of its numbers)."""
        for item in self._items("/"):
            if item.topic.startswith("/raw/"):
                yield _raw(item)
            elif item.topic == "/links":
                yield self._link(item)

    def raw_messages(self, source: str | None = None) -> Iterator[RawMessage]:
        """Messages as received, of one source or of all, in the order of the file."""
        topic = "/raw/" if source is None else f"/raw/{source}"
        for item in self._items(topic):
            if source is None or item.topic == topic:
                yield _raw(item)

    def links(self) -> Iterator[LinkMessage]:
        """Changes of the connections."""
        for item in self._items("/links"):
            yield self._link(item)

    def _link(self, item: _Item) -> LinkMessage:
        data = self._json(item)
        try:
            return LinkMessage(
                source=str(data["source"]),
                sequence=int(data["sequence"]),
                arrival_ns=int(data["arrival_ns"]),
                device="",
                sender_ns=None,
                state=LinkState(data["state"]),
                detail=str(data["detail"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise RecordingError(f"{self.path}: /links #{item.sequence}: {error!r}") from None

    def events(self) -> Iterator[RecordedEvent]:
        """What the operator did."""
        for item in self._items("/events"):
            data = self._json(item)
            try:
                yield RecordedEvent(int(data["tick"]), int(data["now_ns"]), event_from_dict(data["event"]))
            except (KeyError, ValueError, TypeError) as error:
                raise RecordingError(f"{self.path}: /events #{item.sequence}: {error}") from None

    def ticks(self) -> Iterator[Tick]:
        """What each tick rested on and gave."""
        for item in self._items("/ticks"):
            data = self._json(item)
            try:
                yield Tick(
                    sequence=int(data["sequence"]),
                    now_ns=int(data["now_ns"]),
                    cut={str(k): int(v) for k, v in data["cut"].items()},
                    events=int(data["events"]),
                    navigation=data["navigation"],
                    overflowed={str(k): tuple(v) for k, v in data.get("overflowed", {}).items()},
                    faults=tuple(str(f) for f in data.get("faults", ())),
                )
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise RecordingError(f"{self.path}: /ticks #{item.sequence}: {error!r}") from None

    def health(self) -> Iterator[dict[str, Any]]:
        """States of the streams, about one a second."""
        for item in self._items("/health"):
            yield self._json(item)

    def faults(self) -> Iterator[str]:
        """What the recorder itself reported as wrong (gaps)."""
        for item in self._items("/faults"):
            yield str(self._json(item).get("text", ""))

    def sources(self) -> tuple[str, ...]:
        """Names of the sources with at least one message."""
        return tuple(sorted({item.topic.removeprefix("/raw/") for item in self._items("/raw/")}))


def _raw(item: _Item) -> RawMessage:
    return RawMessage(item.topic.removeprefix("/raw/"), item.sequence, item.log_ns, item.publish_ns, bytes(item.data))
