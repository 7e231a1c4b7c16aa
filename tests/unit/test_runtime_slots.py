"""Clocks, the latest-value slot, the inbox with its cuts, and the feed that repeats them."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest

from nav.runtime.clock import ManualClock, SystemClock
from nav.runtime.events import AddNote, BreathHold
from nav.runtime.messages import ImageMessage, LinkMessage, LinkState, Message, PoseMessage, StatusMessage
from nav.runtime.slots import Batch, CutFeed, EventQueue, Inbox, LatestSlot, RecordingGap, message_order


def pose(source: str, sequence: int, arrival_ns: int) -> PoseMessage:
    return PoseMessage(source, sequence, arrival_ns, "NeedleToTracker", None)


def image(source: str, sequence: int, arrival_ns: int, device: str = "US") -> ImageMessage:
    return ImageMessage(source, sequence, arrival_ns, device, None, array=np.zeros((1, 2, 2), np.uint8))


def numbers(batch: Batch) -> list[tuple[str, int]]:
    return [(m.source, m.sequence) for m in batch.messages]


def test_manual_clock_moves_only_forward() -> None:
    clock = ManualClock(5, utc_start_ns=1000)
    assert clock.advance(10) == 15
    assert (clock.now_ns(), clock.utc_ns()) == (15, 1010)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="already reads 15"):
        clock.set(14)


def test_system_clock_is_the_monotonic_clock_of_the_machine() -> None:
    before, now, after = time.monotonic_ns(), SystemClock().now_ns(), time.monotonic_ns()
    assert before <= now <= after


def test_slot_keeps_the_newest_and_counts_what_nobody_took() -> None:
    slot: LatestSlot[int] = LatestSlot()
    assert slot.peek() is None
    assert slot.take() is None
    for value in (1, 2, 3):
        slot.put(value)
    assert slot.dropped == 2
    assert slot.peek() == 3
    assert slot.take() == 3
    assert slot.take() is None
    assert slot.peek() == 3  # looking is still possible
    slot.put(4)
    assert slot.dropped == 2
    assert slot.generation == 4


def test_slot_wait_wakes_on_put_and_ends_at_its_timeout() -> None:
    slot: LatestSlot[str] = LatestSlot()
    assert slot.wait(0.01) is None
    threading.Timer(0.02, slot.put, ("x",)).start()
    assert slot.wait(5.0) == "x"


def test_drain_orders_by_arrival_then_source_then_number() -> None:
    inbox = Inbox()
    for message in (pose("b", 0, 20), pose("b", 1, 30), pose("a", 0, 10), pose("a", 1, 30), pose("a", 2, 30)):
        inbox.deliver(message, b"")
    batch = inbox.drain()
    assert numbers(batch) == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 1)]
    assert batch.cut == {"a": 3, "b": 2}
    empty = inbox.drain()
    assert empty.messages == ()
    assert empty.cut == {"a": 3, "b": 2}


def test_only_the_newest_image_of_a_device_is_used_and_the_others_are_reported() -> None:
    inbox = Inbox()
    inbox.deliver(image("us", 0, 10), b"")
    inbox.deliver(image("us", 1, 11, device="Other"), b"")
    inbox.deliver(StatusMessage("us", 2, 12, "", None), b"")
    inbox.deliver(image("us", 3, 13), b"")
    batch = inbox.drain()
    assert numbers(batch) == [("us", 1), ("us", 2), ("us", 3)]
    assert [m.sequence for m in batch.superseded] == [0]
    assert batch.cut == {"us": 4}
    assert batch.overflowed == {}


def test_a_stalled_reader_of_the_inbox_costs_bounded_memory_and_never_a_pose() -> None:
    inbox = Inbox(max_pending_images=3)
    for n in range(20):
        inbox.deliver(image("us", 2 * n, n), b"")
        inbox.deliver(pose("us", 2 * n + 1, n), b"")
    assert inbox.pending == 20 + 3
    batch = inbox.drain()
    assert [m.sequence for m in batch.messages if isinstance(m, PoseMessage)] == list(range(1, 40, 2))
    assert [m.sequence for m in batch.messages if isinstance(m, ImageMessage)] == [38]
    assert [m.sequence for m in batch.superseded] == [34, 36]
    assert batch.overflowed == {"us": tuple(range(0, 34, 2))}
    assert inbox.drain().overflowed == {}


def test_the_recorder_gets_a_message_before_the_compute_thread_can_see_it() -> None:
    seen: list[tuple[int, int]] = []

    class Recorder:
        def record_message(self, message: Message, raw: bytes | None) -> None:  # noqa: ARG002
            seen.append((message.sequence, inbox.pending))

    inbox = Inbox(Recorder())
    inbox.deliver(pose("a", 0, 1), b"x")
    inbox.deliver(LinkMessage("a", 1, 2, "", None, state=LinkState.CLOSED), None)
    assert seen == [(0, 0), (1, 1)]


def test_wait_wakes_for_a_message_and_for_an_event() -> None:
    inbox = Inbox()
    assert not inbox.wait(0.01)
    events = EventQueue(inbox.wake)
    threading.Timer(0.02, events.post, (BreathHold(True),)).start()
    assert inbox.wait(5.0)
    assert inbox.drain().messages == ()
    assert not inbox.wait(0.0)
    inbox.deliver(pose("a", 0, 1), b"")
    assert inbox.wait(5.0)


def test_events_keep_their_order_and_none_is_lost() -> None:
    events = EventQueue()
    threads = [
        threading.Thread(target=lambda k=k: [events.post(AddNote(f"{k} {n}")) for n in range(200)]) for k in range(3)
    ]
    for thread in threads:
        thread.start()
    got: list[str] = []
    while any(t.is_alive() for t in threads) or len(got) < 600:
        got += [e.text for e in events.drain() if isinstance(e, AddNote)]
    for thread in threads:
        thread.join()
    assert len(got) == 600
    for k in range(3):
        assert [t for t in got if t.startswith(f"{k} ")] == [f"{k} {n}" for n in range(200)]


@pytest.mark.parametrize("seed", range(20))
def test_a_feed_with_the_recorded_cuts_hands_out_the_very_same_batches(seed: int) -> None:
    rng = random.Random(seed)
    inbox = Inbox(max_pending_images=2)
    file: list[Message] = []
    live: list[Batch] = []
    counts = {"tracker": 0, "us": 0, "fluoro": 0}
    clock = 0
    for _ in range(120):
        source = rng.choice(list(counts))
        clock += rng.randrange(0, 3)  # coinciding arrivals too
        number = counts[source]
        counts[source] += 1
        message: Message = pose(source, number, clock) if source == "tracker" else image(source, number, clock)
        file.append(message)
        inbox.deliver(message, b"")
        if rng.random() < 0.15:
            live.append(inbox.drain())
    live.append(inbox.drain())
    assert any(b.overflowed for b in live)
    assert any(b.superseded for b in live)

    # The file holds each source in order, but sources may interleave differently from their arrival.
    shuffled: list[Message] = []
    queues = {s: [m for m in file if m.source == s] for s in counts}
    while any(queues.values()):
        shuffled.append(queues[rng.choice([s for s, q in queues.items() if q])].pop(0))
    feed = CutFeed(shuffled)
    for batch in live:
        again = feed.take(batch.cut, batch.overflowed)
        assert [id(m) for m in again.messages] == [id(m) for m in batch.messages]
        assert [id(m) for m in again.superseded] == [id(m) for m in batch.superseded]
        assert again.cut == batch.cut


def test_a_feed_refuses_a_recording_with_a_hole_or_without_its_end() -> None:
    with pytest.raises(RecordingGap, match="message 1 is missing"):
        CutFeed([pose("a", 0, 1), pose("a", 2, 3)]).take({"a": 3})
    with pytest.raises(RecordingGap, match="a: 3 messages taken, 1 recorded"):
        CutFeed([pose("a", 0, 1)]).take({"a": 3})


def test_message_order_is_total() -> None:
    messages = [pose("a", 1, 5), pose("a", 0, 5), pose("b", 0, 4)]
    assert [m.sequence for m in sorted(messages, key=message_order)] == [0, 0, 1]
