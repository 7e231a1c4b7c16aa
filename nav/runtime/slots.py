"""How values cross from one thread to another: the latest-value slot, the inbox of the compute thread, operator events.

Reader threads only stamp, record and enqueue. The compute thread empties the inbox at the start of a tick, in an order
that the messages themselves define (`message_order`), so everything computed rests on the ordered messages and the
tick's clock reading alone. What a tick took is its *cut*: for each source the number of the next message. A recording
holds the messages and the cuts; `CutFeed` hands a replay the very same batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from nav.runtime.events import OperatorEvent
from nav.runtime.messages import ImageMessage, Message

__all__ = ["Batch", "CutFeed", "EventQueue", "Inbox", "LatestSlot", "RawRecorder", "RecordingGap", "message_order"]

T = TypeVar("T")

#: Images of one device that may wait for the compute thread; one more pushes the oldest out.
MAX_PENDING_IMAGES = 8


class RecordingGap(ValueError):
    """A recording does not hold a message that a recorded tick took in."""


class RawRecorder(Protocol):
    """The part of the recorder that reader threads use; must return at once and never raise."""

    def record_message(self, message: Message, raw: bytes | memoryview | None) -> None:
        """Keep the bytes as received (or the link message)."""


class LatestSlot(Generic[T]):
    """One value, overwritten by the next; values that nobody took are counted. Thread-safe.

    Readers that only look (`peek`) and a single reader that consumes (`take`, `wait`) can share a slot.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._value: T | None = None
        self._fresh = False
        self._generation = 0
        self._dropped = 0

    def put(self, value: T) -> None:
        """Replace the value."""
        with self._condition:
            if self._fresh:
                self._dropped += 1
            self._value, self._fresh = value, True
            self._generation += 1
            self._condition.notify_all()

    def peek(self) -> T | None:
        """The newest value, taken or not; None before the first."""
        with self._condition:
            return self._value

    def take(self) -> T | None:
        """The newest value if it has not been taken yet, else None."""
        with self._condition:
            if not self._fresh:
                return None
            self._fresh = False
            return self._value

    def wait(self, timeout_s: float) -> T | None:
        """Wait for a value that has not been taken, and take it; None after ``timeout_s``."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._fresh, timeout_s):
                return None
            self._fresh = False
            return self._value

    @property
    def generation(self) -> int:
        """How many values have been put."""
        with self._condition:
            return self._generation

    @property
    def dropped(self) -> int:
        """How many values were overwritten before anybody took them."""
        with self._condition:
            return self._dropped


def message_order(message: Message) -> tuple[int, str, int]:
    """Sort key of messages within one tick: arrival, then source and number where arrivals coincide."""
    return (message.arrival_ns, message.source, message.sequence)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one tick takes in.

    Attributes
    ----------
    messages : tuple of Message
        In `message_order`; of the images of one device only the newest.
    superseded : tuple of ImageMessage
        Images left out because a newer one of the same device is in this batch; dropped, but received.
    cut : dict
        Source → number of the first message that was *not* taken yet.
    overflowed : dict
        Source → numbers of images that were pushed out before this tick because the compute thread stalled. Only
        sources that lost some are listed.
    """

    messages: tuple[Message, ...]
    superseded: tuple[ImageMessage, ...]
    cut: dict[str, int]
    overflowed: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _make_batch(pending: list[Message], cut: dict[str, int], overflowed: dict[str, tuple[int, ...]]) -> Batch:
    """Order a tick's messages and thin its images; the one rule for live work and replay."""
    pending.sort(key=message_order)
    newest: dict[tuple[str, str], int] = {}
    for message in pending:
        if isinstance(message, ImageMessage):
            newest[(message.source, message.device)] = message.sequence
    kept: list[Message] = []
    superseded: list[ImageMessage] = []
    for message in pending:
        if isinstance(message, ImageMessage) and newest[(message.source, message.device)] != message.sequence:
            superseded.append(message)
        else:
            kept.append(message)
    return Batch(tuple(kept), tuple(superseded), cut, overflowed)


class Inbox:
    """Where sources deliver and from where the compute thread takes (a `MessageSink`). Thread-safe.

    Every pose, status, text and link message is kept. Of images, only the newest of a device reaches the compute
    thread; older ones of the same batch are dropped when the batch is made, which a replay repeats. When the compute
    thread stalls, more than ``max_pending_images`` of a device push the oldest out at once, so memory stays bounded;
    their numbers are listed in `Batch.overflowed`.

    Parameters
    ----------
    recorder : RawRecorder or None
        Gets every message before the compute thread can see it, so a recorded tick never refers to a message that
        comes later in the file. May be set and removed at run time.
    """

    def __init__(self, recorder: RawRecorder | None = None, *, max_pending_images: int = MAX_PENDING_IMAGES) -> None:
        if max_pending_images < 1:
            raise ValueError(f"max_pending_images {max_pending_images}: at least 1")
        self.recorder = recorder
        self._max_images = max_pending_images
        self._condition = threading.Condition()
        self._pending: list[Message] = []
        self._image_counts: dict[tuple[str, str], int] = {}
        self._cut: dict[str, int] = {}
        self._overflowed: dict[str, list[int]] = {}
        self._woken = False

    def deliver(self, message: Message, raw: bytes | memoryview | None) -> None:
        """Take one message from a reader thread; returns at once. See `MessageSink`."""
        recorder = self.recorder
        if recorder is not None:
            recorder.record_message(message, raw)
        with self._condition:
            self._cut[message.source] = max(self._cut.get(message.source, 0), message.sequence + 1)
            if isinstance(message, ImageMessage):
                key = (message.source, message.device)
                count = self._image_counts.get(key, 0) + 1
                if count > self._max_images:
                    self._push_out_oldest(key)
                    count -= 1
                self._image_counts[key] = count
            self._pending.append(message)
            self._condition.notify_all()

    def _push_out_oldest(self, key: tuple[str, str]) -> None:
        for n, message in enumerate(self._pending):
            if isinstance(message, ImageMessage) and (message.source, message.device) == key:
                self._overflowed.setdefault(message.source, []).append(message.sequence)
                del self._pending[n]
                return

    def drain(self) -> Batch:
        """Take everything that is there."""
        with self._condition:
            pending, self._pending = self._pending, []
            self._image_counts.clear()
            overflowed = {source: tuple(numbers) for source, numbers in self._overflowed.items()}
            self._overflowed.clear()
            cut = dict(self._cut)
            self._woken = False
        return _make_batch(pending, cut, overflowed)

    def wait(self, timeout_s: float) -> bool:
        """Wait until something is there or `wake` was called; False after ``timeout_s``."""
        with self._condition:
            return self._condition.wait_for(lambda: bool(self._pending) or self._woken, timeout_s)

    def wake(self) -> None:
        """Let `wait` return at once (an operator event, the end)."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    @property
    def pending(self) -> int:
        """Messages not taken yet."""
        with self._condition:
            return len(self._pending)


class EventQueue:
    """Operator events on their way to the compute thread; none is ever dropped. Thread-safe.

    Parameters
    ----------
    wake : callable or None
        Called after each event, such as `Inbox.wake`.
    """

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        self._events: deque[OperatorEvent] = deque()
        self._lock = threading.Lock()
        self._wake = wake

    def post(self, event: OperatorEvent) -> None:
        """Add an event; from any thread."""
        with self._lock:
            self._events.append(event)
        if self._wake is not None:
            self._wake()

    def drain(self) -> list[OperatorEvent]:
        """Take all events, oldest first."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
        return events


class CutFeed:
    """Hands out recorded messages in exactly the batches that the live ticks took.

    Parameters
    ----------
    messages : iterable of Message
        Each source's messages in the order of their numbers; sources may interleave in any way. Read lazily.
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages: Iterator[Message] = iter(messages)
        self._ahead: dict[str, deque[Message]] = {}
        self._read: dict[str, int] = {}
        self._next: dict[str, int] = {}

    def take(self, cut: Mapping[str, int], overflowed: Mapping[str, Iterable[int]] | None = None) -> Batch:
        """The batch of the tick whose recorded cut this is; cuts must come in order.

        Raises
        ------
        RecordingGap
            If the recording ends before the cut, or a message in it is missing.
        """
        skip = {(source, number) for source, numbers in (overflowed or {}).items() for number in numbers}
        while any(self._read.get(source, 0) < end for source, end in cut.items()):
            message = next(self._messages, None)
            if message is None:
                behind = {s: (self._read.get(s, 0), end) for s, end in cut.items() if self._read.get(s, 0) < end}
                text = ", ".join(f"{s}: {end} messages taken, {have} recorded" for s, (have, end) in behind.items())
                raise RecordingGap(f"the recording ends before a tick's inputs ({text})")
            expected = self._read.get(message.source, 0)
            if message.sequence != expected:
                raise RecordingGap(
                    f"{message.source}: message {expected} is missing from the recording (next is {message.sequence})"
                )
            self._ahead.setdefault(message.source, deque()).append(message)
            self._read[message.source] = message.sequence + 1
        pending: list[Message] = []
        for source, end in cut.items():
            queue = self._ahead.get(source)
            while queue and queue[0].sequence < end:
                message = queue.popleft()
                if (source, message.sequence) not in skip:
                    pending.append(message)
        return _make_batch(
            pending, dict(cut), {source: tuple(numbers) for source, numbers in (overflowed or {}).items()}
        )
