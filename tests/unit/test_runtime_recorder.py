"""Recordings: what is written is read back; what is wrong is said; what is cut off costs only itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mcap.reader import make_reader

from nav.runtime.clock import ManualClock, SystemClock
from nav.runtime.events import AddNote, SetPlan
from nav.runtime.messages import ImageMessage, LinkMessage, LinkState, PoseMessage
from nav.runtime.recorder import Recorder, RecorderError
from nav.runtime.recording import RawMessage, Recording, RecordingError
from nav.runtime.slots import Inbox

HARD = {"tip_to_target_mm": 0.1 + 0.2, "depth_mm": -1e-308, "min_margin_mm": None, "angle_deg": 1 / 3}


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def record(path: Path, *, ticks: int = 50, flush_every: int = 10) -> None:
    """A small recording of several chunks: poses, images, links, events, ticks."""
    clock = ManualClock(1_000)
    recorder = Recorder(path, metadata={"version": "1.2", "config_sha256": "ab"}, clock=clock, flush_s=60.0)
    recorder.attach("room.json", b'{"name":"room"}', "application/json")
    recorder.attach("case.npz", os.urandom(2000))
    recorder.record_message(
        LinkMessage("tracker", 0, clock.now_ns(), "", None, state=LinkState.CONNECTED, detail="127.0.0.1:1"), None
    )
    for n in range(ticks):
        now = clock.advance(16_000_000)
        recorder.record_message(PoseMessage("tracker", n + 1, now, "Needle", 7_000 + n), b"pose%d" % n)
        if n % 3 == 0:
            recorder.record_message(ImageMessage("us", n // 3, now + 1, "US", None), bytes([n]) * 300)
        recorder.tick(n, now + 2, {"tracker": n + 2, "us": n // 3 + 1}, n // 20, HARD if n % 2 else None)
        if n % 20 == 0:
            recorder.event(AddNote(f"note {n}"), n, now + 2)
        if n % flush_every == flush_every - 1:
            before = recorder.written_bytes
            with recorder._condition:
                recorder._condition.notify()
            wait_for(lambda before=before: recorder.written_bytes > before)
    recorder.tick(ticks, clock.now_ns(), {"tracker": ticks + 1}, 3, None, {"us": (4, 6)}, ("recorder: slow",))
    recorder.health(clock.now_ns(), [{"name": "Needle", "state": "live"}])
    recorder.event(SetPlan(target=(1.0, 2.5, 3.0), name="p"), ticks, clock.now_ns())
    recorder.close()
    assert recorder.fault == ""
    assert recorder.lost == {}


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    record(tmp_path / "r.mcap")
    with Recording.open(tmp_path / "r.mcap") as recording:
        assert recording.complete
        assert recording.cut_off_bytes == 0
        assert recording.metadata == {
            "started": {"monotonic_ns": 1000, "utc_ns": 1_700_000_000_000_000_000},
            "version": "1.2",
            "config_sha256": "ab",
        }
        assert recording.attachments == ("room.json", "case.npz")
        assert recording.attachment("room.json") == b'{"name":"room"}'
        assert recording.sources() == ("tracker", "us")
        poses = list(recording.raw_messages("tracker"))
        assert [p.raw for p in poses] == [b"pose%d" % n for n in range(50)]
        assert [p.sequence for p in poses] == list(range(1, 51))
        assert poses[3] == RawMessage("tracker", 4, 1_000 + 4 * 16_000_000, 7_003, b"pose3")
        images = list(recording.raw_messages("us"))
        assert [i.sequence for i in images] == list(range(17))
        assert images[2].sent_ns == images[2].arrival_ns
        (link,) = recording.links()
        assert link == LinkMessage("tracker", 0, 1000, "", None, state=LinkState.CONNECTED, detail="127.0.0.1:1")
        ticks = list(recording.ticks())
        assert [t.sequence for t in ticks] == list(range(51))
        assert ticks[0].navigation is None
        assert ticks[1].navigation == HARD  # floats to the last bit
        assert ticks[1].cut == {"tracker": 3, "us": 1}
        assert ticks[-1].overflowed == {"us": (4, 6)}
        assert ticks[-1].faults == ("recorder: slow",)
        events = list(recording.events())
        assert [(e.tick, e.event) for e in events[:3]] == [(n, AddNote(f"note {n}")) for n in (0, 20, 40)]
        assert events[3].event == SetPlan(target=(1.0, 2.5, 3.0), name="p")
        assert [h["streams"] for h in recording.health()] == [[{"name": "Needle", "state": "live"}]]
        inputs = list(recording.inputs())
        assert inputs[0] == link
        assert len(inputs) == 1 + 50 + 17


def test_the_file_is_ordinary_mcap(tmp_path: Path) -> None:
    record(tmp_path / "r.mcap")
    with open(tmp_path / "r.mcap", "rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "ablation-nav/1"
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert summary.statistics.message_count == 1 + 50 + 17 + 51 + 4 + 1
        assert {c.topic for c in summary.channels.values()} >= {
            "/raw/tracker",
            "/raw/us",
            "/ticks",
            "/events",
            "/links",
        }
        assert {a.name for a in reader.iter_attachments()} == {"room.json", "case.npz"}
        ticks = [m.data for _, c, m in reader.iter_messages(topics=["/ticks"])]
        assert len(ticks) == 51


def test_a_file_cut_anywhere_opens_and_loses_only_its_end(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mcap"
    record(whole, ticks=30, flush_every=6)
    data = whole.read_bytes()
    with Recording.open(whole) as recording:
        all_inputs, all_ticks, all_events = list(recording.inputs()), list(recording.ticks()), list(recording.events())
    cut = tmp_path / "cut.mcap"
    counts = []
    for size in [*range(1, len(data), 37), *range(len(data) - 40, len(data))]:
        cut.write_bytes(data[:size])
        with Recording.open(cut) as recording:
            assert not recording.complete
            inputs, ticks, events = list(recording.inputs()), list(recording.ticks()), list(recording.events())
            list(recording.health())
        assert inputs == all_inputs[: len(inputs)]
        assert ticks == all_ticks[: len(ticks)]
        assert events == all_events[: len(events)]
        counts.append(len(inputs) + len(ticks) + len(events))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(all_inputs) + len(all_ticks) + len(all_events)
    assert len(set(counts)) > 60  # what is there of a chunk is read too: hardly a cut costs a whole chunk


def test_a_missing_end_is_told_from_damage(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mcap"
    record(whole)
    data = bytearray(whole.read_bytes())
    at = data.index(b"pose25")
    data[at] ^= 1
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(data)
    with Recording.open(broken) as recording, pytest.raises(RecordingError, match=r"damaged at byte \d+: the CRC"):
        list(recording.raw_messages())
    data[at] ^= 1
    data[data.index(b'{"name":"room"}')] ^= 1
    broken.write_bytes(data)
    with pytest.raises(RecordingError, match=r"attachment 'room\.json': the CRC does not match"):
        Recording.open(broken)


def test_zeros_after_a_power_cut_are_a_missing_end(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mcap"
    record(whole)
    data = whole.read_bytes()
    with Recording.open(whole) as recording:
        first_chunks = recording._chunks[:2]
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(data[: first_chunks[1].end] + bytes(4096))
    with Recording.open(cut) as recording:
        # What follows a chunk is its index; cutting there leaves zeros where the next record would begin.
        assert not recording.complete
        assert 0 < len(list(recording.ticks())) < 51


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 something else", "not a recording"),
        (bytes((137, 77, 67, 65, 80, 48, 13, 10)) + b"\x07" + bytes(50), "the first record is of type 7"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.mcap"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=message) as caught:
        Recording.open(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_and_one_of_another_program(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        Recording.open(tmp_path / "none.mcap")
    from mcap.writer import Writer

    path = tmp_path / "ros.mcap"
    with open(path, "wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2")
        writer.finish()  # type: ignore[no-untyped-call]
    with pytest.raises(RecordingError, match="profile 'ros2', expected 'ablation-nav/1'"):
        Recording.open(path)


def test_garbage_never_ends_in_anything_but_a_recording_error(tmp_path: Path) -> None:
    import random

    whole = tmp_path / "whole.mcap"
    record(whole, ticks=20)
    good = whole.read_bytes()
    rng = random.Random(7)
    refused = 0
    path = tmp_path / "x.mcap"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            with Recording.open(path) as recording:
                list(recording.inputs())
                list(recording.ticks())
                list(recording.events())
                list(recording.health())
        except RecordingError:
            refused += 1
    assert refused > 200


def test_a_missing_attachment_names_those_that_are_there(tmp_path: Path) -> None:
    record(tmp_path / "r.mcap")
    with (
        Recording.open(tmp_path / "r.mcap") as recording,
        pytest.raises(RecordingError, match=r"no attachment 'plan'; there: room\.json, case\.npz"),
    ):
        recording.attachment("plan")


def test_an_existing_recording_is_not_overwritten_unless_told_so(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    path.write_bytes(b"precious")
    with pytest.raises(RecorderError, match="exists already"):
        Recorder(path, metadata={}, clock=SystemClock())
    assert path.read_bytes() == b"precious"
    Recorder(path, metadata={}, clock=SystemClock(), overwrite=True).close()
    with Recording.open(path) as recording:
        assert recording.complete


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecorderError, match="No such file or directory"):
        Recorder(tmp_path / "no" / "r.mcap", metadata={}, clock=SystemClock())


def test_a_full_queue_is_a_fault_and_never_blocks(tmp_path: Path) -> None:
    clock = SystemClock()
    recorder = Recorder(tmp_path / "r.mcap", metadata={}, clock=clock, queue_bytes=10_000)
    release = threading.Event()
    write = recorder._writer.add_message

    def slow_disk(*args: object, **kwargs: object) -> None:
        release.wait(10.0)
        write(*args, **kwargs)  # type: ignore[arg-type]

    recorder._writer.add_message = slow_disk  # type: ignore[method-assign,assignment]
    slowest = 0.0
    for n in range(50):
        start = time.perf_counter()
        recorder.record_message(ImageMessage("us", n, n, "US", None), bytes(1000))
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.05
    assert "recording has gaps" in recorder.fault
    assert recorder.lost["/raw/us"] > 30
    release.set()
    recorder.close()
    with Recording.open(tmp_path / "r.mcap") as recording:
        assert recording.complete
        kept = [m.sequence for m in recording.raw_messages()]
        assert kept == list(range(50 - recorder.lost["/raw/us"]))
        assert any("recording has gaps" in fault for fault in recording.faults())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_a_fault(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", metadata={}, clock=SystemClock())
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, recorder._file.fileno())
    os.close(full)
    recorder.record_message(PoseMessage("tracker", 0, 1, "x", None), bytes(100_000))
    wait_for(lambda: recorder.fault != "")
    assert "cannot be written: No space left on device" in recorder.fault
    recorder.record_message(PoseMessage("tracker", 1, 1, "x", None), b"x")
    assert recorder.lost == {"/raw/tracker": 1}
    recorder.close()


def test_a_message_without_its_bytes_is_a_fault(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", metadata={}, clock=SystemClock())
    recorder.record_message(PoseMessage("tracker", 0, 1, "x", None), None)
    assert "without its bytes" in recorder.fault
    recorder.close()


def test_closing_twice_is_safe_and_later_messages_are_counted_as_lost(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", metadata={}, clock=SystemClock())
    recorder.close()
    recorder.close()
    recorder.record_message(PoseMessage("tracker", 0, 1, "x", None), b"x")
    assert recorder.lost == {"/raw/tracker": 1}
    assert recorder.fault == ""


def test_what_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", metadata={}, clock=SystemClock())
    recorder.tick(0, 1, {}, 0, {"angle_deg": float("nan"), "depth_mm": float("inf"), "lateral_mm": 1.5})
    recorder.close()
    with Recording.open(tmp_path / "r.mcap") as recording:
        (tick,) = recording.ticks()
    assert tick.navigation == {"angle_deg": None, "depth_mm": None, "lateral_mm": 1.5}


def test_several_readers_record_through_one_inbox(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", metadata={}, clock=SystemClock(), flush_s=0.01)
    inbox = Inbox(recorder)

    def read(source: str) -> None:
        for n in range(500):
            inbox.deliver(PoseMessage(source, n, time.monotonic_ns(), "x", None), f"{source}{n}".encode())

    threads = [threading.Thread(target=read, args=(f"s{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    with Recording.open(tmp_path / "r.mcap") as recording:
        for k in range(4):
            assert [m.raw for m in recording.raw_messages(f"s{k}")] == [f"s{k}{n}".encode() for n in range(500)]


@pytest.mark.skipif(shutil.which("nice") is None, reason="needs nice")
def test_importing_the_reader_needs_no_kernels() -> None:
    """Looking into a recording must be quick: no numba, no Qt."""
    code = "import sys, nav.runtime.recording; print([m for m in ('numba', 'PySide6') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
