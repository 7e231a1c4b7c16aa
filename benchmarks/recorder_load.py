"""Processor time that recording a busy room takes, and how late it makes another thread.

    python benchmarks/recorder_load.py [seconds]

A tracker with four tools at 60 Hz, ultrasound of 512 x 512 at 30 fps, fluoroscopy of 512 x 512 int16 at 6 fps and one
tick per tracker report go into a file in the temporary folder. The same loop without a recorder is the baseline.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from nav.runtime.clock import SystemClock
from nav.runtime.messages import ImageMessage, PoseMessage
from nav.runtime.recorder import Recorder

CLOCK = SystemClock()
NUMBERS = {"tip_to_target_mm": 1 / 3, "min_margin_mm": 2 / 3, "lateral_mm": 0.1, "depth_mm": 12.3, "angle_deg": 3.21}


def deliver(recorder: Recorder, n: int, pose: bytes, ultrasound: bytes, fluoro: bytes) -> None:
    """What arrives within one period of the tracker."""
    for k in range(4):
        recorder.record_message(PoseMessage("tracker", 4 * n + k, CLOCK.now_ns(), "tool", None), pose)
    if n % 2 == 0:
        recorder.record_message(ImageMessage("ultrasound", n // 2, CLOCK.now_ns(), "Image", None), ultrasound)
    if n % 10 == 0:
        recorder.record_message(ImageMessage("fluoro", n // 10, CLOCK.now_ns(), "CtFluoro", None), fluoro)
    recorder.tick(
        n, CLOCK.now_ns(), {"tracker": 4 * n + 4, "ultrasound": n // 2 + 1, "fluoro": n // 10 + 1}, 0, NUMBERS
    )


def measure(seconds: float, recorder: Recorder | None) -> tuple[float, list[float]]:
    """Processor cores used, and how late (ms) a thread woke that wanted to run every millisecond."""
    pose, ultrasound, fluoro = os.urandom(106), os.urandom(512 * 512 + 130), os.urandom(2 * 512 * 512 + 130)
    late: list[float] = []
    stop = threading.Event()

    def other_thread() -> None:
        while not stop.is_set():
            start = time.perf_counter()
            time.sleep(0.001)
            late.append((time.perf_counter() - start - 0.001) * 1e3)

    other = threading.Thread(target=other_thread)
    other.start()
    cpu, start = time.process_time(), time.perf_counter()
    n = 0
    while time.perf_counter() - start < seconds:
        if recorder is not None:
            deliver(recorder, n, pose, ultrasound, fluoro)
        n += 1
        time.sleep(max(start + n / 60 - time.perf_counter(), 0.0))
    cores = (time.process_time() - cpu) / (time.perf_counter() - start)
    stop.set()
    other.join()
    return cores, late


def main() -> None:
    """Measure without and with a recorder."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "load.mcap", metadata={}, clock=CLOCK)
        for name, used in (("without", None), ("with", recorder)):
            cores, late = measure(seconds, used)
            p99, worst = np.percentile(late, 99), max(late)
            print(f"{name:8s} recorder: {cores:.3f} cores; other thread late: p99 {p99:.2f} ms, worst {worst:.2f} ms")
        recorder.close()
        print(f"{recorder.written_bytes / seconds / 1e6:.1f} MB/s written; fault: {recorder.fault or 'none'}")


if __name__ == "__main__":
    main()
