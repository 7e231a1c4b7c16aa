"""A recording played as a source, and decoded at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from drivers.openigtlink.codec import decode, encode_image, encode_transform
from drivers.replay.source import RecordingSource, decode_all, make_source
from nav.config.room import ImageStreamConfig, RoomConfig, SourceConfig, ToolStreamConfig
from nav.runtime.clock import ManualClock, SystemClock
from nav.runtime.messages import ImageMessage, LinkMessage, LinkState, Message, PoseMessage
from nav.runtime.recorder import Recorder
from nav.runtime.recording import Recording, RecordingError
from nav.runtime.slots import Batch, CutFeed, Inbox

START = 5_000_000_000
TRACKER = SourceConfig(name="tracker", tools=(ToolStreamConfig(device="NeedleToTracker", transform="NeedleToTracker"),))
ULTRASOUND = SourceConfig(name="us", port=18945, images=(ImageStreamConfig(device="Image"),))
ROOM = RoomConfig(sources=(TRACKER, ULTRASOUND))


class Sink:
    def __init__(self) -> None:
        self.got: list[tuple[Message, bytes | None, int]] = []

    def deliver(self, message: Message, raw: bytes | None) -> None:
        self.got.append((message, raw, time.monotonic_ns()))


def make_recording(path: Path) -> list[Batch]:
    """0.4 s of a tracker and an ultrasound, drained into ticks as a live thread would; returns the live batches."""
    clock = ManualClock(START)
    recorder = Recorder(path, metadata={}, clock=clock)
    inbox = Inbox(recorder)
    inbox.deliver(LinkMessage("tracker", 0, clock.now_ns(), "", None, state=LinkState.CONNECTED), None)
    batches = []
    for n in range(40):
        now = clock.advance(10_000_000)
        pose = np.eye(4)
        pose[:3, 3] = (n, 0.1 * n, 1 / 3)
        raw = encode_transform("NeedleToTracker", pose, sender_ns=1_700_000_000_000_000_000 + n * 10_000_000)
        inbox.deliver(decode(raw, source="tracker", sequence=n + 1, arrival_ns=now, options=TRACKER), raw)
        if n % 2 == 0:
            raw = encode_image("Image", np.full((4, 5), n, np.uint8), np.eye(4))
            inbox.deliver(decode(raw, source="us", sequence=n // 2, arrival_ns=now, options=ULTRASOUND), raw)
        if n % 7 == 6:
            batches.append(inbox.drain())
            recorder.tick(len(batches) - 1, now, batches[-1].cut, 0, None, batches[-1].overflowed)
    recorder.close()
    return batches


def same(a: Message, b: Message) -> bool:
    if isinstance(a, PoseMessage) and isinstance(b, PoseMessage):
        tools = zip(a.tools, b.tools, strict=True)
        return (a.source, a.sequence, a.arrival_ns, a.sender_ns) == (
            b.source,
            b.sequence,
            b.arrival_ns,
            b.sender_ns,
        ) and all(x.name == y.name and x.status is y.status and np.array_equal(x.matrix, y.matrix) for x, y in tools)
    if isinstance(a, ImageMessage) and isinstance(b, ImageMessage):
        return (a.source, a.sequence, a.arrival_ns) == (b.source, b.sequence, b.arrival_ns) and np.array_equal(
            a.array, b.array
        )
    return a == b


def test_decoded_messages_and_cuts_repeat_the_live_batches(tmp_path: Path) -> None:
    live = make_recording(tmp_path / "r.mcap")
    with Recording.open(tmp_path / "r.mcap") as recording:
        feed = CutFeed(decode_all(recording, ROOM))
        ticks = list(recording.ticks())
        assert len(ticks) == len(live) == 5
        for tick, batch in zip(ticks, live, strict=True):
            again = feed.take(tick.cut, tick.overflowed)
            assert len(again.messages) == len(batch.messages)
            assert all(same(a, b) for a, b in zip(again.messages, batch.messages, strict=True))
            assert [m.sequence for m in again.superseded] == [m.sequence for m in batch.superseded]
    assert any(b.superseded for b in live)


def test_a_source_that_the_room_does_not_know_is_named(tmp_path: Path) -> None:
    make_recording(tmp_path / "r.mcap")
    with (
        Recording.open(tmp_path / "r.mcap") as recording,
        pytest.raises(RecordingError, match="source 'us' is not in the room configuration; sources there: tracker"),
    ):
        list(decode_all(recording, RoomConfig(sources=(TRACKER,))))


def test_played_as_a_source_it_keeps_bytes_numbers_and_pace(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    make_recording(path)
    sink = Sink()
    source = make_source(TRACKER.model_copy(update={"driver": "replay", "path": str(path)}), SystemClock())
    before = threading.active_count()
    started = time.monotonic_ns()
    source.start(sink)
    assert source.join(5.0)
    source.stop()
    source.stop()
    assert threading.active_count() == before
    messages = [m for m, _, _ in sink.got]
    assert [m.sequence for m in messages] == list(range(42))
    assert [type(m) for m in messages] == [LinkMessage, *[PoseMessage] * 40, LinkMessage]
    assert isinstance(messages[-1], LinkMessage)
    assert (messages[-1].state, messages[-1].detail) == (LinkState.CLOSED, "end of the recording")
    with Recording.open(path) as recording:
        assert [raw for _, raw, _ in sink.got[1:-1]] == [m.raw for m in recording.raw_messages("tracker")]
    # Arrivals are new, at the recorded distances: none early; the whole takes its time.
    for n, (message, _, taken_ns) in enumerate(sink.got[1:-1]):
        assert started <= message.arrival_ns <= taken_ns
        assert message.arrival_ns - started >= n * 10_000_000
    assert messages[40].arrival_ns - started < 2_000_000_000


def test_stopping_in_the_middle_ends_the_thread_and_delivers_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    make_recording(path)
    clock = ManualClock(0)
    sink = Sink()
    source = RecordingSource(TRACKER.model_copy(update={"path": str(path)}), clock)
    source.start(sink)
    end = time.monotonic() + 5.0
    while not sink.got and time.monotonic() < end:
        time.sleep(0.005)
    assert len(sink.got) == 1  # the clock stands still: only what was due at once
    source.stop()
    assert source.join(0.0)
    clock.advance(10**9)
    time.sleep(0.1)
    assert len(sink.got) == 1


def test_what_cannot_be_played_is_said_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    make_recording(path)
    with pytest.raises(RecordingError, match="holds no source 'probe'; there: tracker, us"):
        RecordingSource(SourceConfig(name="probe", path=str(path)), SystemClock())
    with pytest.raises(RecordingError, match="'path' must name the recording"):
        RecordingSource(TRACKER, SystemClock())
    with pytest.raises(ValueError, match="speed 0 must be positive"):
        RecordingSource(TRACKER.model_copy(update={"path": str(path)}), SystemClock(), speed=0)
