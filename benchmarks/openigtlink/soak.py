"""Half an hour of a live session whose tracker is closed, reset, silent, restarted, out of step, lost, and set back.

    python benchmarks/openigtlink/soak.py [--minutes 30] [--seed 1] [--json FILE]

The session is the program's own (sources, inbox, compute thread) without a window; tracker and ultrasound are a process
of their own that keeps the truth (``soak_server.py``). Shown are, over every snapshot of the session: how long a number
outlived the last true pose, how soon each trouble was named, how soon the numbers were back, and memory, threads and
files.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nav.cli.live import LiveStreams
from nav.cli.progress import live_kernels
from nav.config.room import RoomConfig
from nav.runtime.clock import SystemClock
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import SetPlan, StartGuidance
from nav.runtime.memory import keep_freed_memory
from nav.runtime.messages import Message, PoseMessage
from nav.runtime.plugins import make_source
from nav.runtime.snapshot import NavigationSnapshot
from nav.runtime.warmup import warm_up

HERE = Path(__file__).resolve().parent
#: A number may outlive its pose by this.
SURVIVAL_MS = 250.0
CLOSED_MS, SILENT_MS, BACK_MS = 100.0, 1000.0, 1000.0
#: Troubles in which the connection breaks: what was sent into it shortly before and after may be lost, nothing else.
BREAKING = ("close", "reset", "restart", "half_message", "garbage")
LOST_WITH_IT_NS = 200_000_000
MEMORY_MB_PER_HOUR, CORES = 20.0, 0.4
#: Ticks come with the tracker's 60 and the scanner's 30 messages a second, and while nothing comes.
MOST_TICKS_HZ = 250
EYE = np.eye(4).tolist()


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        return int(a.getsockname()[1]), int(b.getsockname()[1])


def room(tracker: int, ultrasound: int) -> RoomConfig:
    tools = [{"device": n, "transform": n, "nominal_hz": 60.0} for n in ("NeedleToTracker", "ReferenceToTracker")]
    return RoomConfig.model_validate(
        {
            "name": "soak",
            "sources": [
                {"name": "tracker", "port": tracker, "tools": tools},
                {
                    "name": "ultrasound",
                    "port": ultrasound,
                    "images": [{"device": "Image", "placed_by": "header", "frame": "Reference"}],
                },
            ],
            "calibrations": [
                {"name": "NeedleTipToNeedle", "matrix": EYE, "provenance": "nominal"},
                {"name": "ReferenceToRas", "matrix": EYE, "provenance": "assumed"},
            ],
        }
    )


class Watch:
    """What every snapshot said of the needle, and which of its poses came.

    Its memory is taken at the beginning, all of it, so that what grows afterwards is the program's.
    """

    def __init__(self, minutes: float) -> None:
        ticks = round((minutes + 1) * 60 * MOST_TICKS_HZ)
        self._ticks = self._poses = 0
        self._stamps, self._now_ns = (np.full(ticks, -1, np.int64) for _ in range(2))
        self._has_number, self._link_lost, self._image_live = (np.full(ticks, True) for _ in range(3))

    stamps = property(lambda self: self._stamps[: self._poses])
    now_ns = property(lambda self: self._now_ns[: self._ticks])
    has_number = property(lambda self: self._has_number[: self._ticks])
    link_lost = property(lambda self: self._link_lost[: self._ticks])
    image_live = property(lambda self: self._image_live[: self._ticks])

    def on_tick(self, snapshot: NavigationSnapshot) -> None:
        state = next(s.state for s in snapshot.streams if s.name == "NeedleToTracker")
        n = self._ticks
        self._now_ns[n] = snapshot.now_ns
        self._has_number[n] = snapshot.guidance is not None or snapshot.needle.pose is not None
        self._link_lost[n] = state == "link_lost"
        self._image_live[n] = any(s.kind == "image" and s.state == "live" for s in snapshot.streams)
        self._ticks = n + 1

    def record_message(self, message: Message, raw: bytes | memoryview | None) -> None:  # noqa: ARG002
        """As a recorder: called with everything that a source delivers."""
        if isinstance(message, PoseMessage) and message.device == "NeedleToTracker" and message.sender_ns:
            self._stamps[self._poses] = message.sender_ns
            self._poses += 1


def measure(minutes: float, seed: int) -> dict[str, Any]:
    keep_freed_memory()
    sys.setswitchinterval(0.0005)
    clock, watch = SystemClock(), Watch(minutes)
    # As the program does, before anything is received: a first run of changed kernels takes a quarter of a minute.
    warm_up(live_kernels(), lambda _name, _n, _of: None, clock=clock)
    ports = free_ports()
    command = [sys.executable, str(HERE / "soak_server.py"), *map(str, ports), str(minutes * 60), str(seed)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    facts: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: facts.extend(json.loads(line) for line in server.stdout or ()))
    reader.start()
    config = room(*ports)
    sources = tuple(make_source(s, clock) for s in config.sources)
    live = LiveStreams(config, sources, clock, CaseEssentials(""), out=None, on_tick=watch.on_tick)
    live.inbox.recorder = watch
    live.start()
    live.compute.submit(SetPlan((0.0, 0.0, 100.0), (0.0, 0.0, 0.0)))
    live.compute.submit(StartGuidance())
    process = psutil.Process()
    usage = []
    cpu = time.process_time()
    begin = time.monotonic()
    while reader.is_alive():
        usage.append(
            (
                time.monotonic() - begin,
                process.memory_info().rss,
                process.num_threads(),
                len(os.listdir("/proc/self/fd")),
            )
        )
        reader.join(5.0)
    cpu = (time.process_time() - cpu) / (time.monotonic() - begin)
    statistics = {s.name: repr(s.statistics()) for s in sources}  # type: ignore[attr-defined]
    live.stop()
    server.wait(5)
    return {
        "minutes": minutes,
        "problem": live.problem,
        "cpu_cores": cpu,
        "sources": statistics,
        **judge(facts, watch),
        **resources(usage),
        "tracker_connections": sources[0].connections,  # type: ignore[attr-defined]
        "poses_missing": missing(facts, watch),
    }


def judge(facts: list[dict[str, Any]], watch: Watch) -> dict[str, Any]:
    now, number = watch.now_ns, watch.has_number
    true = np.array(next(f for f in facts if f["event"] == "over")["true_ns"], np.int64)
    over = next(f for f in facts if f["event"] == "over")["at_ns"]
    shown = now[number & (now <= over)]
    last = np.searchsorted(true, shown, "right") - 1
    survival = (shown[last >= 0] - true[last[last >= 0]]) / 1e6
    troubles: dict[str, dict[str, list[float]]] = {}
    begun = [f for f in facts if f["event"] == "begin"]
    ended = [f for f in facts if f["event"] == "end"]
    for first, second in zip(begun, ended, strict=False):
        kind = first["trouble"]
        found = troubles.setdefault(kind, {"named_ms": [], "back_ms": []})
        if kind in (*BREAKING, "stall"):
            from_ns = first["at_ns"] - 20_000_000  # it was done just before it was said
            named = now[(now >= from_ns) & watch.link_lost]
            late = kind != "stall" or second["at_ns"] - first["at_ns"] > 1.2e9
            if late:
                found["named_ms"].append(float(named[0] - first["at_ns"]) / 1e6 if len(named) else np.inf)
        if kind == "clock_step":
            continue
        back = now[(now >= second["at_ns"]) & number]
        if len(back) and second["at_ns"] < over - 2e9:
            # Where the trouble is an instant, the number may not have gone at all: back means shown with a new pose.
            found["back_ms"].append(float(back[0] - second["at_ns"]) / 1e6)
    gaps = {kind: {k: _worst(v) for k, v in f.items()} | {"count": len(f["back_ms"])} for kind, f in troubles.items()}
    return {
        "snapshots": len(now),
        "with_numbers": int(number.sum()),
        "poses_sent": len(true),
        "survival_ms": {"p50": float(np.median(survival)), "max": float(survival.max())},
        "troubles": gaps,
        "images_live_at_the_end": bool(watch.image_live[np.searchsorted(now, over - 10**9)]),
        "clock_steps": sum(f["trouble"] == "clock_step" for f in begun),
    }


def missing(facts: list[dict[str, Any]], watch: Watch) -> dict[str, int]:
    """True poses that were sent and did not come: into a connection that broke, and otherwise (which must not be)."""
    over = next(f for f in facts if f["event"] == "over")
    came = {*watch.stamps.tolist()}
    # A stamp comes back as the nearest that the wire can say; it is exact to the nanosecond.
    lost = [at for at, stamp in zip(over["true_ns"], over["stamps"], strict=True) if stamp not in came]
    breaks = [f["at_ns"] for f in facts if f["event"] == "begin" and f["trouble"] in BREAKING] + [over["at_ns"]]
    excused = sum(any(abs(at - moment) < LOST_WITH_IT_NS for moment in breaks) for at in lost)
    return {"in_a_broken_connection": excused, "otherwise": len(lost) - excused}


def _worst(values: list[float]) -> dict[str, float] | None:
    return {"p50": float(np.median(values)), "max": float(np.max(values))} if values else None


def resources(usage: list[tuple[float, int, int, int]]) -> dict[str, Any]:
    rows = np.array(usage, float)
    warm = rows[rows[:, 0] > min(120.0, rows[-1, 0] / 3)]
    slope = float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0]) * 3600 / 1e6 if len(warm) > 5 else None
    return {
        "rss_mb": {"first": float(warm[0, 1] / 1e6), "last": float(warm[-1, 1] / 1e6), "per_hour": slope},
        "threads": {"least": int(warm[:, 2].min()), "most": int(warm[:, 2].max())},
        "files": {"least": int(warm[:, 3].min()), "most": int(warm[:, 3].max())},
    }


def failures(report: dict[str, Any]) -> list[str]:
    """What is beyond its limit."""
    found = [report["problem"]] if report["problem"] else []
    if report["survival_ms"]["max"] > SURVIVAL_MS + 20:
        found.append(f"a number outlived its pose by {report['survival_ms']['max']:.0f} ms, limit {SURVIVAL_MS:.0f}")
    for kind, f in report["troubles"].items():
        limit = SILENT_MS if kind == "stall" else CLOSED_MS
        if f["named_ms"] and f["named_ms"]["max"] > limit:
            found.append(f"{kind}: named after {f['named_ms']['max']:.0f} ms, limit {limit:.0f}")
        if f["back_ms"] and f["back_ms"]["max"] > BACK_MS:
            found.append(f"{kind}: back after {f['back_ms']['max']:.0f} ms, limit {BACK_MS:.0f}")
    if report["poses_missing"]["otherwise"]:
        found.append(f"{report['poses_missing']['otherwise']} poses lost in a sound connection")
    if not report["images_live_at_the_end"]:
        found.append("no images at the end, 4 s after the last trouble")
    slope = report["rss_mb"]["per_hour"]
    if slope is not None and report["minutes"] >= 10 and slope > MEMORY_MB_PER_HOUR:
        found.append(f"memory grows by {slope:.0f} MB per hour, limit {MEMORY_MB_PER_HOUR:.0f}")
    for what, spread in (("threads", 0), ("files", 2)):  # two sources may be between connections
        least, most = report[what]["least"], report[what]["most"]
        if most - least > spread:
            found.append(f"{what}: {least} to {most}")
    if report["cpu_cores"] > CORES:
        found.append(f"{report['cpu_cores']:.2f} cores, limit {CORES}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = measure(options.minutes, options.seed)
    report["failures"] = failures(report)
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
