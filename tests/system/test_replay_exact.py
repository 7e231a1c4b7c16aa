"""Live threads, real bytes, one recording; computed again from it, every number is the same to the last bit."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from drivers.openigtlink.codec import decode, encode_image, encode_transform
from drivers.replay.source import decode_all
from nav.ablation.tumour import TumourModel
from nav.config.room import CalibrationConfig, ImageStreamConfig, RoomConfig, SourceConfig, ToolStreamConfig
from nav.geometry.volume import Volume
from nav.io.case import PlannedPath
from nav.runtime.clock import SystemClock
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import BreathHold, ChooseApplicator, SetPlan, StartGuidance
from nav.runtime.messages import LinkMessage, LinkState
from nav.runtime.pipeline import ComputeThread
from nav.runtime.recorder import Recorder
from nav.runtime.recording import Recording
from nav.runtime.slots import CutFeed, Inbox, RecordingGap
from nav.runtime.summary import SummaryBuilder

SECONDS = 3.0
ROOM = RoomConfig(
    sources=(
        SourceConfig(
            name="tracker",
            tools=tuple(ToolStreamConfig(device=n, transform=n) for n in ("NeedleToTracker", "ReferenceToTracker")),
        ),
        SourceConfig(name="us", port=18945, images=(ImageStreamConfig(device="Image"),)),
    ),
    calibrations=(
        CalibrationConfig(name="NeedleTipToNeedle", matrix=np.eye(4).tolist()),
        CalibrationConfig(name="ReferenceToRas", matrix=np.eye(4).tolist(), provenance="assumed"),
        CalibrationConfig(name="ImageToProbe", matrix=np.diag([0.2, 0.2, 1.0, 1.0]).tolist(), kind="pixels"),
    ),
)


def essentials() -> CaseEssentials:
    grid = np.mgrid[:24, :24, :24] - 11.5
    mask = (np.sum(grid**2, axis=0) < 8.0**2).astype(np.uint8)
    affine = np.eye(4)
    affine[:3, 3] = (-11.5, -11.5, 40.0)
    tumour = TumourModel.from_mask(Volume.of(mask, affine), margin_mm=5.0)
    return CaseEssentials("P", paths=(PlannedPath("path", (0.0, 0.0, -60.0), (0.0, 0.0, 51.0)),), tumour=tumour)


def rigid(rng: np.random.Generator, z: float) -> np.ndarray:
    angle = 0.05 * rng.standard_normal()
    m = np.eye(4)
    m[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    m[:3, 3] = (*rng.standard_normal(2), z)
    return m


def read_tracker(inbox: Inbox, clock: SystemClock, stop: threading.Event) -> None:
    """Two tools at 60 Hz with jitter, a drop-out, and a lost connection in the middle."""
    rng = np.random.default_rng(5)
    config, number, start = ROOM.sources[0], 0, clock.now_ns()

    def link(state: LinkState) -> None:
        nonlocal number
        inbox.deliver(LinkMessage("tracker", number, clock.now_ns(), "", None, state=state), None)
        number += 1

    link(LinkState.CONNECTED)
    for n in range(int(SECONDS * 60)):
        if stop.wait(max((start + n * 16_666_667 - clock.now_ns()) * 1e-9, 0.0) + rng.uniform(0.0, 0.004)):
            return
        if n == 120:
            link(LinkState.CLOSED)
        if n == 130:
            link(LinkState.CONNECTED)
        if 60 <= n < 80 or 120 <= n < 130:
            continue
        stamp = 1_700_000_000_000_000_000 + start + n * 16_666_667
        for device, matrix in (("NeedleToTracker", rigid(rng, n * 0.2)), ("ReferenceToTracker", rigid(rng, 0.0))):
            raw = encode_transform(device, matrix, sender_ns=stamp)
            now = clock.now_ns()
            inbox.deliver(decode(raw, source="tracker", sequence=number, arrival_ns=now, options=config), raw)
            number += 1


def read_ultrasound(inbox: Inbox, clock: SystemClock, stop: threading.Event) -> None:
    """Bursts of frames, so that some are superseded."""
    config, number = ROOM.sources[1], 0
    while not stop.wait(0.1):
        for _ in range(4):
            raw = encode_image("Image", np.full((32, 32), number % 256, np.uint8), np.eye(4), sender_ns=clock.utc_ns())
            inbox.deliver(decode(raw, source="us", sequence=number, arrival_ns=clock.now_ns(), options=config), raw)
            number += 1


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SummaryBuilder, list[dict[str, float | None] | None]]:
    path = tmp_path_factory.mktemp("live") / "recording.mcap"
    clock, builder = SystemClock(), SummaryBuilder()
    numbers: list[dict[str, float | None] | None] = []
    recorder = Recorder(path, metadata={}, clock=clock)
    inbox = Inbox(recorder)
    compute = ComputeThread(
        NavigationCore(ROOM, essentials()),
        inbox,
        clock,
        recorder=recorder,
        on_tick=lambda s: numbers.append(builder.add_tick(s)),
    )
    stop = threading.Event()
    readers = [threading.Thread(target=read, args=(inbox, clock, stop)) for read in (read_tracker, read_ultrasound)]
    compute.start()
    for reader in readers:
        reader.start()
    for event in (
        StartGuidance(),
        BreathHold(True),
        SetPlan(target=(1.0, 2.0, 50.0), entry=(0.0, 1 / 3, -60.0)),
        ChooseApplicator("emprint", 75.0, 300.0),
    ):
        time.sleep(0.4)
        compute.submit(event)
    readers[0].join(10.0)
    stop.set()
    readers[1].join(5.0)
    compute.stop()
    recorder.close()
    assert compute.error == ""
    assert recorder.fault == ""
    return path, builder, numbers


def repeat(path: Path) -> tuple[SummaryBuilder, list[dict[str, float | None] | None], list[object]]:
    builder, numbers, recorded = SummaryBuilder(), [], []
    with Recording.open(path) as recording:
        core = NavigationCore(ROOM, essentials())
        feed = CutFeed(decode_all(recording, ROOM))
        events = list(recording.events())
        for tick in recording.ticks():
            taken = [e.event for e in events if e.tick == tick.sequence]
            try:
                batch = feed.take(tick.cut, tick.overflowed)
            except RecordingGap:
                break
            snapshot = core.tick(batch, taken, tick.now_ns, faults=tick.faults, recording=True)
            assert snapshot.events == tick.events
            numbers.append(builder.add_tick(snapshot))
            recorded.append(tick.navigation)
    return builder, numbers, recorded


def test_every_number_is_computed_again_to_the_last_bit(
    live: tuple[Path, SummaryBuilder, list[dict[str, float | None] | None]],
) -> None:
    path, builder, numbers = live
    again, repeated, recorded = repeat(path)
    assert sum(n is not None for n in repeated) > 20
    assert sum(n is None for n in repeated) > 5
    assert repeated == numbers
    assert recorded == numbers
    assert again.navigation() == builder.navigation()
    assert again.gate() == builder.gate()
    margins = {n["min_margin_mm"] for n in repeated if n is not None}
    assert None not in margins
    assert len(margins) > 15


def test_a_recording_without_its_end_repeats_what_it_holds(
    live: tuple[Path, SummaryBuilder, list[dict[str, float | None] | None]], tmp_path: Path
) -> None:
    path, _, numbers = live
    data = path.read_bytes()
    for share in (0.31, 0.77):
        cut = tmp_path / f"cut-{share}.mcap"
        cut.write_bytes(data[: int(len(data) * share)])
        _, repeated, _ = repeat(cut)
        assert 0.15 * len(numbers) < len(repeated) < len(numbers)
        assert repeated == numbers[: len(repeated)]
