"""Recordings played as live sources: every frame, at its own time, lost tools lost; and the rooms that go with them."""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from openigtlink_tools import Collector

from drivers.openigtlink.player import (
    PlayedImage,
    PlayedMessage,
    PlayedTransform,
    play,
    play_sequence,
    sequence_messages,
)
from drivers.openigtlink.sink import IgtlServer
from drivers.openigtlink.source import IgtlSource, make_source
from nav.config.load import load_toml, shipped_config
from nav.config.room import RoomConfig, SourceConfig
from nav.geometry.poses import PoseStatus
from nav.io.sequence import TrackedSequence, TransformTrack, read_sequence
from nav.runtime.messages import ImageMessage, PoseMessage

MISSING = PoseStatus.MISSING


def shifted(x: float) -> np.ndarray:
    m = np.eye(4)
    m[0, 3] = x
    return m


def recording(n: int = 6) -> TrackedSequence:
    """n frames with odd distances in time; the needle is lost in frame 2."""
    times = np.array([100.0, 100.03, 100.05, 100.1, 100.12, 100.2])[:n]
    needle = [shifted(k) if k != 2 else np.full((4, 4), np.nan) for k in range(n)]
    tracks = {
        "NeedleToTracker": TransformTrack(
            "NeedleToTracker",
            np.array(needle),
            tuple(MISSING if k == 2 else PoseStatus.OK for k in range(n)),
        ),
        "ProbeToTracker": TransformTrack(
            "ProbeToTracker", np.array([shifted(10 + k) for k in range(n)]), (PoseStatus.OK,) * n
        ),
    }
    images = np.arange(n * 4 * 5, dtype=np.uint8).reshape(n, 4, 5)
    valid = np.array([k != 1 for k in range(n)])
    return TrackedSequence(times, tracks, images, valid)


def collect(messages: list[PlayedMessage], *, version: int = 2, loop: bool = False, want: int) -> Collector:
    sink, stop = Collector(), threading.Event()
    with IgtlServer(keep_alive_s=None) as server:
        source = make_source(SourceConfig(name="player", port=server.port, header_version=version))
        source.start(sink)
        assert server.wait_for_clients()
        deadline = time.monotonic() + 5
        while server.clients[0].version != version and time.monotonic() < deadline:
            time.sleep(0.005)
        player = threading.Thread(target=lambda: play(server, messages, loop=loop, stop=stop))
        player.start()
        try:
            sink.wait_for(lambda c: len(c.of(PoseMessage)) + len(c.of(ImageMessage)) >= want)
        finally:
            stop.set()
            player.join(2)
            source.stop()
    return sink


def test_every_frame_at_its_own_time() -> None:
    sequence = recording()
    sink = collect(sequence_messages(sequence), want=5 + 6 + 5)
    probe = [m for m in sink.of(PoseMessage) if m.device == "ProbeToTracker"]
    stamps = np.array([m.sender_ns for m in probe])
    np.testing.assert_allclose((stamps - stamps[0]) * 1e-9, sequence.timestamps_s - 100.0, atol=2e-9)
    assert [m.tools[0].matrix[0, 3] for m in probe] == [10, 11, 12, 13, 14, 15]  # type: ignore[index]
    # Real speed: arrivals are as far apart as the stamps, up to the scheduler.
    arrivals = np.array([m.arrival_ns for m in probe])
    assert np.abs((arrivals - arrivals[0]) - (stamps - stamps[0])).max() < 0.15e9
    images = sink.of(ImageMessage)
    assert [m.sender_ns for m in images] == [s for k, s in enumerate(stamps) if k != 1]
    for message, k in zip(images, (0, 2, 3, 4, 5), strict=True):
        np.testing.assert_array_equal(message.array[0], np.asarray(sequence.images)[k])
    assert abs(probe[0].sender_ns - time.time_ns()) < 60e9  # type: ignore[operator]


def test_lost_tool_is_silent_or_said_never_a_pose() -> None:
    silent = collect(sequence_messages(recording()), want=16)
    needle = [m for m in silent.of(PoseMessage) if m.device == "NeedleToTracker"]
    assert [m.tools[0].matrix[0, 3] for m in needle] == [0, 1, 3, 4, 5]  # type: ignore[index]
    said = collect(sequence_messages(recording(), send_invalid=True), want=17)
    needle = [m for m in said.of(PoseMessage) if m.device == "NeedleToTracker"]
    assert [m.tools[0].status for m in needle] == [PoseStatus.OK] * 2 + [MISSING] + [PoseStatus.OK] * 3
    assert needle[2].tools[0].matrix is None


def test_loop_goes_on_in_time() -> None:
    sink = collect([PlayedTransform(t, "T", shifted(t)) for t in (0.0, 0.02, 0.04)], loop=True, want=7)
    poses = sink.of(PoseMessage)[:7]
    stamps = [m.sender_ns or 0 for m in poses]
    assert np.diff(stamps).tolist() == [20_000_000] * 6
    assert [round(float(m.tools[0].matrix[0, 3]), 3) for m in poses] == [0, 0.02, 0.04, 0, 0.02, 0.04, 0]  # type: ignore[index]


def test_names_and_choice_of_devices() -> None:
    messages = sequence_messages(recording(), image_device="US", devices={"NeedleToTracker": "Tool 1"})
    assert {getattr(m, "device", "") for m in messages} == {"US", "Tool 1"}
    long = "UltrasoundProbeToReference"
    sink = collect([PlayedTransform(0.0, long, np.eye(4))], want=1)
    (message,) = sink.of(PoseMessage)
    assert (message.device, message.tools[0].name) == (long[:20], long)


def test_nothing_to_play_is_said() -> None:
    with IgtlServer() as server:
        for messages in ([], [PlayedTransform(float("nan"), "T", np.eye(4))]):
            with pytest.raises(ValueError, match="nothing to play"):
                play(server, messages)


def test_plus_recording_as_a_live_source(shared_data: Path) -> None:
    file = shared_data / "plus" / "TestImages" / "SlidingProbeTrackingData.igs.mha"
    room = load_toml(shipped_config("rooms", "plus_sliding_probe.toml"), RoomConfig)
    sink, stop = Collector(), threading.Event()
    with IgtlServer(name="PlusServer") as server:
        source = make_source(room.sources[0].model_copy(update={"port": server.port}))
        assert isinstance(source, IgtlSource)
        source.start(sink)
        assert server.wait_for_clients()
        player = threading.Thread(target=lambda: play_sequence(file, server, stop=stop))
        player.start()
        try:
            sink.wait_for(lambda c: len(c.of(PoseMessage)) >= 9, 8.0)
        finally:
            stop.set()
            player.join(2)
            source.stop()
    sequence = read_sequence(file)
    names = {t.transform for t in room.sources[0].tools}
    assert {m.tools[0].name for m in sink.of(PoseMessage)} == names == set(sequence.transforms)
    for name in names:
        mine = [m.tools[0] for m in sink.of(PoseMessage) if m.tools[0].name == name]
        for k, report in enumerate(mine):
            np.testing.assert_allclose(report.matrix, sequence.transforms[name].matrices[k], atol=1e-5)


def load_script(name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_liver_sweep_and_its_room(shared_data: Path) -> None:
    folder = shared_data / "ultrasound_liver_sweep"
    messages = load_script("play_liver_sweep").sweep_messages(folder)  # type: ignore[attr-defined]
    poses = [m for m in messages if isinstance(m, PlayedTransform)]
    images = [m for m in messages if isinstance(m, PlayedImage)]
    assert len(poses) > 250
    assert len(images) > 100
    assert {m.array.shape for m in images} == {(593, 739)}
    assert 40 < np.mean(images[60].array) < 120 or np.std(images[60].array) > 20, "not a blank picture"
    # Every image lies between two poses less than 0.1 s apart, so that it can be placed at its own time.
    pose_times = np.array([m.time_s for m in poses])
    for image in images:
        k = int(np.searchsorted(pose_times, image.time_s))
        assert 0 < k < len(pose_times) or image.time_s in (pose_times[0], pose_times[-1])
        assert pose_times[min(k, len(pose_times) - 1)] - pose_times[max(k - 1, 0)] < 0.1
    room = load_toml(shipped_config("rooms", "liver_sweep.toml"), RoomConfig)
    calibrations = {c.name: c for c in room.calibrations}
    with np.load(folder / "liver_sweep_tracking.npz") as data:
        columns, rows = 739, 593
        to_mm = np.diag([*data["spacing_mm"], 1.0, 1.0])
        to_mm[:2, 3] = -data["spacing_mm"] * ((columns - 1) / 2, (rows - 1) / 2)
        wanted = data["calibration"] @ to_mm
    np.testing.assert_allclose(calibrations["ImageToProbe"].pixel_map().matrix, wanted, atol=1e-5)
    assert calibrations["ReferenceToRas"].provenance == "assumed"
    # The sweep tilts about the skin: over it the top middle of the image stays within 2 cm, the bottom moves 10 cm.
    near = [m for m in poses if images[0].time_s <= m.time_s <= images[-1].time_s]
    probe = np.array([m.matrix for m in (near[0], near[len(near) // 2], near[-1])])
    top, bottom = (np.einsum("nij,j->ni", probe @ wanted, (369.0, row, 0.0, 1.0)) for row in (0.0, 592.0))
    assert np.ptp(top, axis=0).max() < 20
    assert np.ptp(bottom, axis=0).max() > 100
