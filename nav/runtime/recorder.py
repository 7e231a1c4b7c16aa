"""The recorder: everything received, as received, with what the operator did and what each tick computed, into MCAP.

Layout and schemas: ``docs/recording.md``. The callers (reader threads, compute thread) only append to a queue; a thread
of its own writes and hands all of it to the operating system every `FLUSH_S`, so a killed process loses less
than a second. A queue that is full or a disk that does not take the data is a *fault*: it is named in `Recorder.fault`
and shown, and it never blocks a reader.

Chunks are not compressed: speckle does not compress, and the processor has better things to do. Each chunk
carries a CRC, so damage inside a file is told from a missing end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mcap.writer import CompressionType, IndexType, Writer

from nav.runtime.clock import Clock
from nav.runtime.events import OperatorEvent, event_to_dict
from nav.runtime.jsonio import compact_json
from nav.runtime.messages import LinkMessage, Message

__all__ = ["PROFILE", "Recorder", "RecorderError"]

PROFILE = "ablation-nav/1"
FLUSH_S = 0.2
QUEUE_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 4 * 1024 * 1024
#: What a queued item costs beside its bytes, so that many small items cannot grow without limit either.
ITEM_BYTES = 256
#: A channel number of the file belongs to one source; a runaway number of sources is a fault, not a huge table.
MAX_SOURCES = 64

_INTEGER = {"type": "integer"}
_SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "/links": (
        "ablation_nav.Link",
        {
            "source": {"type": "string"},
            "sequence": _INTEGER,
            "arrival_ns": _INTEGER,
            "state": {"enum": ["connecting", "connected", "closed", "failed"]},
            "detail": {"type": "string"},
        },
    ),
    "/events": (
        "ablation_nav.OperatorEvent",
        {"tick": _INTEGER, "now_ns": _INTEGER, "event": {"type": "object"}},
    ),
    "/ticks": (
        "ablation_nav.Tick",
        {
            "sequence": _INTEGER,
            "now_ns": _INTEGER,
            "cut": {"type": "object", "additionalProperties": _INTEGER},
            "events": _INTEGER,
            "navigation": {"type": ["object", "null"]},
            "overflowed": {"type": "object"},
            "faults": {"type": "array", "items": {"type": "string"}},
        },
    ),
    "/health": ("ablation_nav.Health", {"now_ns": _INTEGER, "streams": {"type": "array"}}),
    "/faults": ("ablation_nav.Fault", {"now_ns": _INTEGER, "text": {"type": "string"}}),
}


class RecorderError(OSError):
    """The recording cannot be started; the message names the file and what to do."""


class _Attachment:
    __slots__ = ("data", "media_type", "name")

    def __init__(self, name: str, media_type: str, data: bytes) -> None:
        self.name, self.media_type, self.data = name, media_type, data


class Recorder:
    """Writes one recording. Thread-safe.

    Parameters
    ----------
    path : path
        File to make.
    metadata : mapping
        What a reader must know first (program version, configuration hash); JSON values, no patient identifiers.
    clock : Clock
        For the header's pair of monotonic and wall-clock readings.
    overwrite : bool
        False: an existing file is refused.
    queue_bytes : int
        Most that may wait for the disk.

    Raises
    ------
    RecorderError
        When the file cannot be made.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        metadata: Mapping[str, Any],
        clock: Clock,
        overwrite: bool = False,
        queue_bytes: int = QUEUE_BYTES,
        flush_s: float = FLUSH_S,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._queue_bytes = queue_bytes
        self._flush_s = flush_s
        try:
            self._file: IO[bytes] = open(self.path, "wb" if overwrite else "xb")  # noqa: SIM115 (the thread closes it)
        except FileExistsError:
            raise RecorderError(f"recording {self.path} exists already; choose another folder or remove it") from None
        except OSError as error:
            raise RecorderError(
                f"recording {self.path} cannot be written: {error.strerror}; choose a folder that can be written to"
            ) from None
        self._writer = Writer(
            self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.NONE, index_types=IndexType.ALL
        )
        self._channels: dict[str, int] = {}
        self._condition = threading.Condition()
        self._queue: list[tuple[str, int, int, int, Any]] = []  # topic, sequence, log time, publish time, data
        self._queued_bytes = 0
        self._lost: dict[str, int] = {}
        self._fault = ""
        self._failed = False
        self._closing = False
        self._counters: dict[str, int] = {}
        self._written_bytes = 0
        started = {"monotonic_ns": clock.now_ns(), "utc_ns": clock.utc_ns()}
        try:
            self._writer.start(profile=PROFILE)
            session = {"started": started, **metadata}
            self._writer.add_metadata("session", {key: compact_json(value).decode() for key, value in session.items()})
            for topic, (name, properties) in _SCHEMAS.items():
                schema = compact_json({"title": name, "type": "object", "properties": properties})
                schema_id = self._writer.register_schema(name, "jsonschema", schema)
                self._channels[topic] = self._writer.register_channel(topic, "json", schema_id)
            self._writer.flush()  # type: ignore[no-untyped-call]
        except OSError as error:
            self._file.close()
            raise RecorderError(f"recording {self.path} cannot be written: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    # -- callers' side: append and return ------------------------------------------------------------------------

    def record_message(self, message: Message, raw: bytes | memoryview | None) -> None:
        """Keep a message as received, or a change of a link. Called by reader threads; returns at once."""
        if isinstance(message, LinkMessage):
            data = {
                "source": message.source,
                "sequence": message.sequence,
                "arrival_ns": message.arrival_ns,
                "state": message.state.value,
                "detail": message.detail,
            }
            self._enqueue("/links", message.sequence, message.arrival_ns, message.arrival_ns, data, 0)
        elif raw is None:
            self._set_fault(f"{message.source}: a message came without its bytes and cannot be recorded")
        else:
            sent_ns = message.arrival_ns if message.sender_ns is None else message.sender_ns
            self._enqueue(f"/raw/{message.source}", message.sequence, message.arrival_ns, sent_ns, raw, len(raw))

    def event(self, event: OperatorEvent, tick: int, now_ns: int) -> None:
        """Keep an operator event and the tick (its number and clock reading) that took it in."""
        self._enqueue_json("/events", now_ns, {"tick": tick, "now_ns": now_ns, "event": event_to_dict(event)})

    def tick(
        self,
        sequence: int,
        now_ns: int,
        cut: Mapping[str, int],
        events: int,
        navigation: Mapping[str, float | None] | None,
        overflowed: Mapping[str, tuple[int, ...]] | None = None,
        faults: tuple[str, ...] = (),
    ) -> None:
        """Keep what a tick rested on and what it gave.

        Parameters
        ----------
        sequence, now_ns : int
            Number and clock reading of the tick.
        cut : mapping
            Source → number of the first message not taken (`Batch.cut`).
        events : int
            Operator events taken in up to and including this tick.
        navigation : mapping or None
            The numbers, as Python floats; None when the gate blanks them. Must not be changed afterwards.
        overflowed : mapping or None
            `Batch.overflowed`.
        faults : tuple of str
            What was wrong outside the streams (such as `fault`) and given to this tick as an input.
        """
        data: dict[str, Any] = {
            "sequence": sequence,
            "now_ns": now_ns,
            "cut": dict(cut),
            "events": events,
            "navigation": navigation,
        }
        if overflowed:
            data["overflowed"] = dict(overflowed)
        if faults:
            data["faults"] = list(faults)
        self._enqueue_json("/ticks", now_ns, data)

    def health(self, now_ns: int, streams: list[dict[str, Any]]) -> None:
        """Keep the state of the streams (about once a second)."""
        self._enqueue_json("/health", now_ns, {"now_ns": now_ns, "streams": streams})

    def attach(self, name: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Add a file to the recording (configuration, case essentials); a later one of the same name replaces it."""
        now_ns = self._clock.now_ns()
        self._enqueue("", 0, now_ns, now_ns, _Attachment(name, media_type, data), len(data))

    def _enqueue_json(self, topic: str, now_ns: int, data: dict[str, Any]) -> None:
        with self._condition:
            number = self._counters.get(topic, 0)
            self._counters[topic] = number + 1
        self._enqueue(topic, number, now_ns, now_ns, data, 0)

    def _enqueue(self, topic: str, sequence: int, log_ns: int, publish_ns: int, data: Any, size: int) -> None:
        cost = size + ITEM_BYTES
        with self._condition:
            if self._failed or self._closing:
                self._lost[topic] = self._lost.get(topic, 0) + 1
                return
            if self._queued_bytes + cost > self._queue_bytes:
                self._lost[topic] = self._lost.get(topic, 0) + 1
                self._fault = self._fault or (
                    f"recording has gaps: the disk does not keep up ({self._queued_bytes / 1e6:.0f} MB waiting, limit "
                    f"{self._queue_bytes / 1e6:.0f} MB); record to a faster disk"
                )
                return
            self._queue.append((topic, sequence, log_ns, publish_ns, data))
            self._queued_bytes += cost
            if self._queued_bytes > self._queue_bytes // 8:
                self._condition.notify()

    def _set_fault(self, text: str) -> None:
        with self._condition:
            self._fault = self._fault or text

    # -- the writing thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            reported = ""
            while True:
                with self._condition:
                    if not self._closing:
                        self._condition.wait(self._flush_s)
                    batch, self._queue = self._queue, []
                    closing, fault = self._closing, self._fault
                size = 0
                for item in batch:
                    size += self._write(*item)
                if fault != reported:
                    now_ns = self._clock.now_ns()
                    self._write("/faults", 0, now_ns, now_ns, {"now_ns": now_ns, "text": fault})
                    reported = fault
                if batch:
                    self._writer.flush()  # type: ignore[no-untyped-call]
                with self._condition:
                    self._queued_bytes -= size
                    self._written_bytes += size
                    if closing and not self._queue:
                        break
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._file.close()
        except OSError as error:
            self._fail(f"recording stopped: {self.path} cannot be written: {error.strerror or error}")
        except Exception as error:  # the recorder must end in a fault that is shown, never in a silent thread
            self._fail(f"recording stopped: {type(error).__name__}: {error}")

    def _write(self, topic: str, sequence: int, log_ns: int, publish_ns: int, data: Any) -> int:
        if isinstance(data, _Attachment):
            self._writer.add_attachment(self._clock.utc_ns(), log_ns, data.name, data.media_type, data.data)
            return len(data.data) + ITEM_BYTES
        size = ITEM_BYTES
        channel = self._channels.get(topic)
        if channel is None:
            if len(self._channels) >= MAX_SOURCES:
                self._set_fault(f"{topic}: more than {MAX_SOURCES} sources; not recorded")
                return size + len(data)
            channel = self._channels[topic] = self._writer.register_channel(topic, "openigtlink", 0)
        if isinstance(data, (bytes, bytearray, memoryview)):
            size += len(data)
            body = bytes(data)
        else:
            body = compact_json(data)
        self._writer.add_message(
            channel, log_ns, body, min(max(publish_ns, 0), 2**64 - 1), sequence=sequence & 0xFFFFFFFF
        )
        return size

    def _fail(self, text: str) -> None:
        with self._condition:
            # A failed write outranks earlier gaps: nothing at all is recorded from here on.
            self._fault = text
            self._failed = True
            self._queue.clear()
            self._queued_bytes = 0
        with contextlib.suppress(OSError):  # named above already
            self._file.close()

    # -- state and end -------------------------------------------------------------------------------------------

    @property
    def fault(self) -> str:
        """What is wrong with the recording, for the person; empty when nothing is."""
        with self._condition:
            return self._fault

    @property
    def lost(self) -> dict[str, int]:
        """Topic → items that did not get into the file."""
        with self._condition:
            return dict(self._lost)

    @property
    def queued_bytes(self) -> int:
        """What waits for the disk."""
        with self._condition:
            return self._queued_bytes

    @property
    def written_bytes(self) -> int:
        """What the operating system has taken so far."""
        with self._condition:
            return self._written_bytes

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits and finish the file. Safe to call twice; a disk that hangs ends in a fault."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._set_fault(f"recording {self.path} was not finished within {timeout_s:.0f} s; its end may be missing")
