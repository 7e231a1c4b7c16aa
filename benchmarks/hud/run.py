"""Frame rate and pose age of the HUD at 1920 x 1080 under Xvfb, with the real compute and render threads.

A feeder in the process delivers tracker poses at 60 Hz (needle, reference, probe, stylus) and, with ``--ultrasound``,
512 x 512 images at 30 fps into the same inbox the network drivers deliver into; the case is the simulated patient. All
else is the program itself: compute thread, render thread, window. With ``--demo`` the simulated room's own processes
send over real sockets instead.

Examples::

    python benchmarks/hud/run.py --seconds 60
    python benchmarks/hud/run.py --seconds 60 --ultrasound --json ultrasound.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = (1920, 1080)
SETTLE_S = 4.0
RATE_HZ, IMAGE_HZ = 60.0, 30.0


def main() -> int:
    """Start Xvfb and measure in a child process, so that the measured process holds nothing else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time")
    parser.add_argument(
        "--settle",
        type=float,
        default=SETTLE_S,
        help="seconds before measuring; the pose buffers fill up for 68 s, so judge memory with 75",
    )
    parser.add_argument("--ultrasound", action="store_true", help="ultrasound overlaid, in the ultrasound layout")
    parser.add_argument("--layout", choices=("guide", "ultrasound"), default="", help="default: as --ultrasound says")
    parser.add_argument("--demo", action="store_true", help="poses and images from the simulated room's processes")
    parser.add_argument("--offscreen", action="store_true", help="Qt's offscreen platform instead of Xvfb")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--check", action="store_true", help="exit 1 when a limit is missed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return measure(arguments)
    environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE")
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    if arguments.offscreen:
        environment["QT_QPA_PLATFORM"] = "offscreen"
        return subprocess.call(command, env=environment)
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{SIZE[0]}x{SIZE[1]}x24", "-nolisten", "tcp"],
        pass_fds=(write,),
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            number = pipe.readline().strip()
        environment.update(DISPLAY=f":{number}", QT_QPA_PLATFORM="xcb")
        return subprocess.call(command, env=environment)
    finally:
        server.terminate()
        server.wait()


@dataclass
class Paints:
    """What the window reports at the end of each paint."""

    tip_pane: str
    counting: bool = False
    count: int = 0
    others: int = 0

    def __post_init__(self) -> None:
        self.ages_ms = array("d")
        self.times_ns = array("q")

    def __call__(self, pane: str, _sequence: int, arrival_ns: int, painted_ns: int) -> None:
        if not self.counting:
            return
        if pane != self.tip_pane:
            self.others += 1
            return
        self.count += 1
        self.times_ns.append(painted_ns)
        if arrival_ns:
            self.ages_ms.append((painted_ns - arrival_ns) / 1e6)


class Feeder:
    """Delivers poses at 60 Hz and images at 30 fps, as the network drivers would; a `nav.runtime.messages.Source`."""

    def __init__(self, name: str, room: Any, path: Any, clock: Any, *, images: bool) -> None:
        import numpy as np

        self.name = name
        self._clock = clock
        self._images = images
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._calibration = {c.name: np.array(c.matrix) for c in room.calibrations}
        entry, target = np.array(path.entry_ras), np.array(path.target_ras)
        self._axis = (target - entry) / np.linalg.norm(target - entry)
        self._entry, self._length = entry, float(np.linalg.norm(target - entry))
        across = np.cross(self._axis, [0.0, 0.0, 1.0])
        self._across = across / np.linalg.norm(across)
        rng = np.random.default_rng(1)
        self._pictures = [rng.integers(0, 160, (1, 512, 512), dtype=np.uint8) for _ in range(4)]

    def start(self, sink: Any) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, args=(sink,), name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _needle_tip(self, seconds: float) -> Any:
        """RAS from needle tip: a slow advance and retreat with a small tremor; it never rests."""
        import numpy as np

        depth = self._length * (0.5 - 0.5 * np.cos(seconds * 0.25))
        sway = 1.5 * np.sin(seconds * 2.1)
        pose = np.eye(4)
        pose[:3, 0], pose[:3, 1], pose[:3, 2] = self._across, np.cross(self._axis, self._across), self._axis
        pose[:3, 3] = self._entry + depth * self._axis + sway * self._across
        return pose

    def _run(self, sink: Any) -> None:
        import numpy as np

        from nav.geometry.poses import PoseStatus
        from nav.runtime.messages import ImageMessage, LinkMessage, LinkState, PoseMessage, ToolReport

        begin = self._clock.now_ns()
        number = 0

        def fields(device: str) -> dict[str, Any]:
            nonlocal number
            number += 1
            now = self._clock.now_ns()
            return {
                "source": self.name, "sequence": number - 1, "arrival_ns": now, "device": device,
                "sender_ns": time.time_ns(),
            }  # fmt: skip

        sink.deliver(LinkMessage(**fields(""), state=LinkState.CONNECTED), None)
        reference = np.eye(4)
        reference[:3, 3] = (3.0, -2.0, 1.0)
        tick = 0
        while not self._stop.is_set():
            seconds = (self._clock.now_ns() - begin) / 1e9
            reference[:3, 3] = (3.0 + 0.001 * (tick % 7), -2.0, 1.0)
            tip = self._needle_tip(seconds)
            # The tracker's frame is that of the reference marker, and that is RAS (see the registration below).
            needle = reference @ tip @ np.linalg.inv(self._calibration["NeedleTipToNeedle"])
            picture = np.eye(4)
            picture[:3, 0], picture[:3, 1] = 0.32 * self._across, 0.32 * self._axis
            picture[:3, 2] = 0.32 * np.cross(self._across, self._axis)
            picture[:3, 3] = tip[:3, 3] - 256 * picture[:3, 0] - 256 * picture[:3, 1]
            probe = reference @ picture @ np.linalg.inv(self._calibration["ImageToProbe"])
            for device, matrix in (
                ("NeedleToTracker", needle), ("StylusToTracker", needle), ("ProbeToTracker", probe),
                ("ReferenceToTracker", reference.copy()),
            ):  # fmt: skip
                report = ToolReport(device, PoseStatus.OK, matrix)
                sink.deliver(PoseMessage(**fields(device), tools=(report,)), None)
            if self._images and tick % 2 == 0:
                array_ = self._pictures[(tick // 2) % len(self._pictures)]
                sink.deliver(ImageMessage(**fields("Image"), array=array_, mm_from_index=np.eye(4)), None)
            tick += 1
            rest = begin + tick * 1e9 / RATE_HZ - self._clock.now_ns()
            if rest > 0:
                time.sleep(rest / 1e9)


def measure(arguments: argparse.Namespace) -> int:
    """Run the window for the settling and the measured time; print one JSON object."""
    import numpy as np
    import psutil
    from PySide6.QtCore import QTimer

    from drivers.room.patient import build_patient, patient_case
    from nav.cli.guidance_run import SWITCH_INTERVAL_S
    from nav.cli.live import LiveSession, LiveStreams, essentials_of
    from nav.cli.progress import live_kernels
    from nav.config.load import load_toml, shipped_config
    from nav.config.room import RoomConfig
    from nav.hud.app import create_application
    from nav.hud.main_window import MainWindow
    from nav.runtime.clock import SystemClock
    from nav.runtime.events import BreathHold, LoadRegistration, StartGuidance
    from nav.runtime.plugins import make_source
    from nav.runtime.warmup import compilations_since_warm_up, warm_up

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    clock = SystemClock()
    room = load_toml(shipped_config("rooms", "simulated.toml"), RoomConfig)
    processes = None
    if arguments.demo:
        from drivers.room.server import start_room

        processes = start_room(room, automatic_ports=True, progress=lambda _text: None)
        room = processes.room
        case = patient_case(processes.patient)
    else:
        case = patient_case(build_patient())
    warm_up(live_kernels(), lambda _name, _n, _of: None, clock=clock)
    if processes is not None:
        sources: tuple[Any, ...] = tuple(make_source(source, clock) for source in room.sources)
    else:
        sources = (
            Feeder("tracker", room, case.paths[0], clock, images=False),
            *((Feeder("ultrasound", room, case.paths[0], clock, images=True),) if arguments.ultrasound else ()),
        )
    live = LiveStreams(room, sources, clock, essentials_of(case, room), out=None)
    session = LiveSession(room, live, clock, case=case, out=None)
    layout = arguments.layout or ("ultrasound" if arguments.ultrasound else "guide")
    session.set_layout(layout)
    paints = Paints("A" if layout == "ultrasound" else "C")
    app = create_application(headless=arguments.offscreen)
    window = MainWindow(session, on_painted=paints)
    window.resize(*SIZE)
    window.show()
    app.processEvents()
    session.start()
    window.start()
    if processes is not None:
        processes.begin(arguments.settle + arguments.seconds)
    else:
        identity = tuple(float(v) for v in np.eye(4).ravel())
        for event in (LoadRegistration(identity), BreathHold(True), StartGuidance()):
            session.submit(event)
    process = psutil.Process()
    marks: dict[str, float] = {}

    def cpu_s() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def by_thread() -> dict[str, float]:
        names = {t.native_id: t.name for t in threading.enumerate()}
        spent: dict[str, float] = {}
        for thread in process.threads():
            name = names.get(thread.id, "native")
            spent[name] = spent.get(name, 0.0) + thread.user_time + thread.system_time
        return spent

    before: dict[str, float] = {}
    after: dict[str, float] = {}

    def begin() -> None:
        before.update(by_thread())
        marks.update(cpu=cpu_s(), start=time.monotonic(), rss=process.memory_info().rss)
        paints.counting = True

    def end() -> None:
        paints.counting = False
        after.update(by_thread())
        marks.update(cpu_end=cpu_s(), end=time.monotonic(), rss_end=process.memory_info().rss)
        app.quit()

    QTimer.singleShot(round(arguments.settle * 1000), begin)
    QTimer.singleShot(round((arguments.settle + arguments.seconds) * 1000), end)
    app.exec()
    window.stop()
    session.stop()
    window.close()
    if processes is not None:
        processes.stop()
    seconds = marks["end"] - marks["start"]
    ages = np.array(paints.ages_ms)
    gaps = np.diff(np.array(paints.times_ns)) / 1e6
    figures = {
        "platform": app.platformName(),
        "layout": layout,
        "source": "room processes" if arguments.demo else "feeder",
        "ultrasound": bool(arguments.ultrasound or arguments.demo),
        "seconds": round(seconds, 2),
        "tip_pane": paints.tip_pane,
        "tip_pane_fps": round(paints.count / seconds, 2),
        "other_panes_fps": round(paints.others / seconds, 2),
        "pictures_with_pose": len(ages),
        "pose_age_at_paint_ms": _percentiles(ages),
        "frame_interval_ms": _percentiles(gaps),
        "cpu_cores": round((marks["cpu_end"] - marks["cpu"]) / seconds, 3),
        "cores_by_thread": {n: round((t - before.get(n, 0.0)) / seconds, 3) for n, t in sorted(after.items())},
        "rss_growth_mb": round((marks["rss_end"] - marks["rss"]) / 1e6, 2),
        "compilations_after_warm_up": compilations_since_warm_up(),
        "load_average": os.getloadavg()[0],
        "problem": live.problem,
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0 if not arguments.check or _good(figures) else 1


def _percentiles(values: Any) -> dict[str, float | None]:
    import numpy as np

    if len(values) == 0:
        return {"p50": None, "p95": None, "max": None}
    return {
        "p50": round(float(np.percentile(values, 50)), 2),
        "p95": round(float(np.percentile(values, 95)), 2),
        "max": round(float(values.max()), 2),
    }


def _good(figures: dict[str, Any]) -> bool:
    """The limits: 55 fps (50 with ultrasound), pose age p95 50 ms, 20 MB, no compilation."""
    age = figures["pose_age_at_paint_ms"]["p95"]
    return bool(
        figures["tip_pane_fps"] >= (50.0 if figures["ultrasound"] else 55.0)
        and age is not None
        and age <= 50.0
        and figures["rss_growth_mb"] <= 20.0
        and figures["compilations_after_warm_up"] == 0
    )


if __name__ == "__main__":
    sys.exit(main())
