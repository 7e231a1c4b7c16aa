"""A recording process that is killed in the middle loses at most its last second."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nav.runtime.recording import Recording

#: Records like a busy room (tracker 4 x 60 Hz, ultrasound 512 x 512 at 30 fps), and says what it has delivered.
CHILD = """
import sys, time
from nav.runtime.clock import SystemClock
from nav.runtime.messages import ImageMessage, PoseMessage
from nav.runtime.recorder import Recorder
from nav.runtime.slots import Inbox

clock = SystemClock()
recorder = Recorder(sys.argv[1], metadata={"version": "test"}, clock=clock)
recorder.attach("case.npz", bytes(300_000))
inbox = Inbox(recorder)
frame = bytes(512 * 512)
tick = pose = image = 0
print("go", flush=True)
while True:
    for _ in range(4):
        inbox.deliver(PoseMessage("tracker", pose, clock.now_ns(), "Needle", None), bytes(106))
        pose += 1
    if tick % 2 == 0:
        inbox.deliver(ImageMessage("us", image, clock.now_ns(), "US", None), frame)
        image += 1
    batch = inbox.drain()
    now = clock.now_ns()
    recorder.tick(tick, now, batch.cut, 0, {"tip_to_target_mm": tick / 3})
    tick += 1
    if recorder.fault:
        sys.exit(recorder.fault)
    time.sleep(1 / 60)
"""


@pytest.mark.parametrize("after_s", [1.3, 2.05])
def test_kill_9_loses_at_most_the_last_second(tmp_path: Path, after_s: float) -> None:
    path = tmp_path / "killed.mcap"
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(after_s)
        assert process.poll() is None
    finally:
        killed_ns = time.monotonic_ns()  # the same clock in every process of a machine
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with Recording.open(path) as recording:
        assert not recording.complete
        assert recording.metadata["version"] == "test"
        assert len(recording.attachment("case.npz")) == 300_000
        ticks = list(recording.ticks())
        poses = list(recording.raw_messages("tracker"))
        images = list(recording.raw_messages("us"))
    started_ns = ticks[0].now_ns
    assert killed_ns - started_ns > 1_000_000_000
    for name, newest in (
        ("ticks", ticks[-1].now_ns),
        ("poses", poses[-1].arrival_ns),
        ("images", images[-1].arrival_ns),
    ):
        assert killed_ns - newest < 1_000_000_000, name
    # Nothing is missing in between, and no tick refers to a message that is not there.
    assert [t.sequence for t in ticks] == list(range(len(ticks)))
    assert [p.sequence for p in poses] == list(range(len(poses)))
    assert [i.sequence for i in images] == list(range(len(images)))
    assert ticks[-1].cut["tracker"] <= len(poses)
    assert ticks[-1].cut["us"] <= len(images)
    assert ticks[-1].navigation == {"tip_to_target_mm": ticks[-1].sequence / 3}
