"""A recording as a source: played at its own pace like a device, or decoded at once for an exact replay.

Both re-decode the bytes as they were received, so a corrected decoder shows its effect on old recordings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from drivers.openigtlink.codec import decode
from drivers.openigtlink.video_codecs import VideoDecoders
from nav.config.room import RoomConfig, SourceConfig
from nav.runtime.clock import Clock
from nav.runtime.messages import LinkMessage, LinkState, Message, MessageSink
from nav.runtime.recording import RawMessage, Recording, RecordingError

__all__ = ["RecordingSource", "decode_all", "make_source"]


def decode_all(recording: Recording, room: RoomConfig) -> Iterator[Message]:
    """Every recorded message in the order of the file, with its own number and arrival time.

    Parameters
    ----------
    recording : Recording
    room : RoomConfig
        The configuration to decode with: that of the recording for an exact replay.

    Raises
    ------
    RecordingError
        When the recording holds a source that ``room`` does not know.
    """
    options = {source.name: source for source in room.sources}
    videos = {source.name: VideoDecoders() for source in room.sources}
    for item in recording.inputs():
        if item.source not in options:
            known = ", ".join(sorted(options))
            raise RecordingError(
                f"{recording.path}: source {item.source!r} is not in the room configuration; sources there: {known}"
            )
        yield _message(item, item.arrival_ns, options[item.source], videos[item.source])


def _message(item: RawMessage | LinkMessage, arrival_ns: int, options: SourceConfig, videos: VideoDecoders) -> Message:
    """The message as a live source delivers it."""
    if isinstance(item, LinkMessage):
        videos.lost()
        return replace(item, arrival_ns=arrival_ns)
    return decode(
        item.raw,
        source=item.source,
        sequence=item.sequence,
        arrival_ns=arrival_ns,
        options=options,
        videos=videos,
    )


class RecordingSource:
    """Plays one source of a recording as if the device were there: an ordinary live `Source`.

    Messages keep their numbers, bytes and sender stamps; they arrive anew, at the recorded distances in time. At the
    end the link closes. Several sources of one recording that are started together stay together, to within the moment
    between their starts.

    Parameters
    ----------
    options : SourceConfig
        ``path`` is the recording; ``name`` the source in it to play.
    clock : Clock
        Stamps arrival.
    speed : float
        2 plays twice as fast. Sender stamps keep their own pace, so at speeds other than 1 use ``stamps = "arrival"``.

    Raises
    ------
    RecordingError
        When the recording cannot be read or does not hold this source.
    """

    def __init__(self, options: SourceConfig, clock: Clock, *, speed: float = 1.0) -> None:
        if not speed > 0.0:
            raise ValueError(f"{options.name}: speed {speed} must be positive")
        self._videos = VideoDecoders()
        if not options.path:
            raise RecordingError(f"source {options.name}: 'path' must name the recording to play")
        self.name = options.name
        self._options = options
        self._clock = clock
        self._speed = speed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        with Recording.open(Path(options.path)) as recording:
            self._first_arrival_ns = next((item.arrival_ns for item in recording.inputs()), 0)
            if all(item.source != self.name for item in recording.inputs()):
                there = ", ".join(recording.sources()) or "none"
                raise RecordingError(f"{options.path}: holds no source {self.name!r}; there: {there}")

    def start(self, sink: MessageSink) -> None:
        """Begin to play; returns at once."""
        if self._thread is not None:
            raise RuntimeError(f"source {self.name}: started twice")
        self._thread = threading.Thread(
            target=self._play, args=(sink, self._clock.now_ns()), name=f"replay-{self.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop and join the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the recording; False after ``timeout_s``."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return False

    def _play(self, sink: MessageSink, started_ns: int) -> None:
        sequence = -1
        detail = "end of the recording"
        try:
            with Recording.open(Path(self._options.path)) as recording:
                for item in recording.inputs():
                    if item.source != self.name:
                        continue
                    due_ns = started_ns + int((item.arrival_ns - self._first_arrival_ns) / self._speed)
                    if not self._wait_until(due_ns):
                        return
                    sequence = item.sequence
                    self._deliver(sink, item)
        except RecordingError as error:
            detail = str(error)
        sink.deliver(
            LinkMessage(self.name, sequence + 1, self._clock.now_ns(), "", None, state=LinkState.CLOSED, detail=detail),
            None,
        )

    def _wait_until(self, due_ns: int) -> bool:
        while not self._stop.is_set():
            left_ns = due_ns - self._clock.now_ns()
            if left_ns <= 0:
                return True
            # Bounded, so that a clock that is moved by hand is noticed too.
            self._stop.wait(min(left_ns * 1e-9, 0.05))
        return False

    def _deliver(self, sink: MessageSink, item: RawMessage | LinkMessage) -> None:
        message = _message(item, self._clock.now_ns(), self._options, self._videos)
        sink.deliver(message, None if isinstance(item, LinkMessage) else item.raw)


def make_source(options: SourceConfig, clock: Clock) -> RecordingSource:
    """Entry point ``replay`` of ``ablation_nav.sources``: a `SourceConfig` with ``driver = "replay"``."""
    return RecordingSource(options, clock)
