"""Latency, losses, throughput and processor time of OpenIGTLink: ours beside the C++ library and pyigtl, in one run.

    python benchmarks/openigtlink/run.py [--quick] [--only TEXT] [--json FILE]

Sender and receiver are processes of their own on loopback. The pairs take turns, round by round, so that whatever else
the machine does meets all of them; a figure is the median over the rounds. *One-way* counts from before packing to when
the receiver has the message with its CRC checked and its content read: in C++ after ``Unpack(1)``, in pyigtl in its
receiving thread (its CRC is never checked), ours both when the receive kernel stamps it (``stamped``) and when the
decoded message is delivered to the program (``delivered``). Every message carries a number, and every image a pattern
that depends on it, so that what is lost or spliced is seen. The C++ programs are built with g++ against Debian's
libopenigtlink-dev; without it their rows are missing, and it is said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
HEADERS = Path("/usr/include/openigtlink")

#: Name → rate, messages of a round, width, height, depth, scalar type.
CASES: dict[str, tuple[float, int, int, int, int, int]] = {
    "TRANSFORM 100 Hz": (100, 400, 0, 0, 0, 0),
    "TRANSFORM 1 kHz": (1000, 3000, 0, 0, 0, 0),
    "512x512 u8 30/s": (30, 90, 512, 512, 1, 3),
    "512x512 u8 60/s": (60, 120, 512, 512, 1, 3),
    "1024x768 u8 30/s": (30, 90, 1024, 768, 1, 3),
    "1024x768 u8 60/s": (60, 120, 1024, 768, 1, 3),
    "512x512x16 i16 5/s": (5, 20, 512, 512, 16, 4),
}
THROUGHPUT: dict[str, tuple[float, int, int, int, int, int]] = {
    "TRANSFORM": (0, 50_000, 0, 0, 0, 0),
    "512x512 u8": (0, 1000, 512, 512, 1, 3),
    "1024x768 u8": (0, 400, 1024, 768, 1, 3),
    "512x512x16 i16": (0, 40, 512, 512, 16, 4),
}
PAIRS = (("ours", "ours"), ("C++", "C++"), ("C++", "ours"), ("ours", "C++"), ("pyigtl", "pyigtl"))
#: Of the first messages of a round nothing is counted: both ends are cold.
WARM_UP = 0.2


class Programs:
    """Command lines of both ends of each kind."""

    def __init__(self, folder: Path) -> None:
        self.cpp: dict[str, Path] = {}
        compiler = shutil.which("g++")
        if compiler is None or not HEADERS.is_dir():
            return
        for name in ("sender", "receiver"):
            program = folder / name
            source = HERE / "cpp" / f"{name}.cxx"
            subprocess.run(
                [compiler, "-O2", "-w", f"-I{HEADERS}", str(source), "-o", str(program), "-lOpenIGTLink", "-lpthread"],
                check=True,
            )
            self.cpp[name] = program

    def send(self, kind: str, port: int, case: tuple[Any, ...]) -> list[str]:
        if kind == "C++":
            return [str(self.cpp["sender"]), str(port), *map(str, case)]
        return [sys.executable, str(HERE / "endpoint.py"), "send", kind, str(port), *map(str, case)]

    def receive(self, kind: str, port: int, case: tuple[Any, ...], *more: str) -> list[str]:
        if kind == "C++":
            return [str(self.cpp["receiver"]), str(port), str(case[1])]
        return [sys.executable, str(HERE / "endpoint.py"), "receive", kind, str(port), *map(str, case), *more]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def converse(programs: Programs, pair: tuple[str, str], case: tuple[Any, ...], *more: str) -> dict[str, Any]:
    """One round of one pair: rows (number, sent, received, delivered, whole), and processor time where it is told."""
    port = free_port()
    sender = subprocess.Popen(programs.send(pair[0], port, case), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert sender.stdout is not None
    try:
        sender.stdout.readline()  # ready
        seconds = case[1] / (case[0] or 20.0) + 60
        done = subprocess.run(
            programs.receive(pair[1], port, case, *more),
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
    finally:
        sender.kill()
        out = sender.communicate()[0].decode()
    rows, cpu = [], None
    for line in done.stdout.splitlines():
        words = line.split()
        if words[0] == "cpu":
            cpu = float(words[1])
        else:
            numbers = [int(w) for w in words]
            rows.append(numbers if len(numbers) == 5 else [*numbers[:3], numbers[2], numbers[3]])
    sent_cpu = next((float(line.split()[1]) for line in out.splitlines() if line.startswith("cpu")), None)
    return {"rows": np.array(rows, np.int64).reshape(-1, 5), "cpu": cpu, "sender_cpu": sent_cpu}


def figures(result: dict[str, Any], count: int) -> dict[str, Any]:
    """Latencies in ms, and what did not arrive as it was sent."""
    rows = result["rows"]
    if not len(rows):
        return {"delivered": 0, "of": count, "spliced": 0}
    numbers = rows[:, 0]
    warm = rows[int(len(rows) * WARM_UP) :]
    stamped, delivered = (warm[:, 2] - warm[:, 1]) / 1e6, (warm[:, 3] - warm[:, 1]) / 1e6
    return {
        "delivered": len(np.unique(numbers[(rows[:, 4] == 1)])),
        "of": count,
        "spliced": int((rows[:, 4] == 0).sum()),
        "out_of_order": int((np.diff(numbers) < 0).sum()),
        "stamped": _percentiles(stamped),
        "one_way": _percentiles(delivered),
    }


def _percentiles(values: Any) -> dict[str, float]:
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}


def median_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median round by round; of counts, the worst."""
    out: dict[str, Any] = {
        "delivered": min(r["delivered"] for r in rounds),
        "of": rounds[0]["of"],
        "spliced": max(r["spliced"] for r in rounds),
    }
    for key in ("stamped", "one_way"):
        full = [r[key] for r in rounds if key in r]
        out[key] = {p: float(np.median([f[p] for f in full])) for p in ("p50", "p99", "max")} if full else None
    return out


def latency(programs: Programs, cases: dict[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
    collected: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            for pair in PAIRS:
                if "C++" in pair and not programs.cpp:
                    continue
                label = f"{pair[0]} -> {pair[1]}"
                collected[name].setdefault(label, []).append(figures(converse(programs, pair, case), case[1]))
    return {name: {pair: median_of(runs) for pair, runs in pairs.items()} for name, pairs in collected.items()}


def throughput(programs: Programs, rounds: int) -> dict[str, dict[str, float]]:
    """Messages per second, unpaced, from the first to the last received."""
    out: dict[str, dict[str, float]] = {}
    for name, case in THROUGHPUT.items():
        for pair in PAIRS[:2]:
            if "C++" in pair and not programs.cpp:
                continue
            rates = []
            for _ in range(rounds):
                rows = converse(programs, pair, case)["rows"]
                if len(rows) > 1:
                    rates.append((len(rows) - 1) / ((rows[-1, 3] - rows[0, 3]) * 1e-9))
            out.setdefault(name, {})[f"{pair[0]} -> {pair[1]}"] = float(np.median(rates)) if rates else 0.0
    return out


def contention(programs: Programs, rounds: int) -> dict[str, Any]:
    """TRANSFORM at 100 Hz beside a thread that only computes, and without it."""
    case = (100, 800, 0, 0, 0, 0)
    sender = "C++" if programs.cpp else "ours"
    runs: dict[str, list[dict[str, Any]]] = {"idle": [], "busy": []}
    for _ in range(rounds):
        for state, more in (("idle", ()), ("busy", ("busy",))):
            runs[state].append(figures(converse(programs, (sender, "ours"), case, *more), case[1]))
    return {state: median_of(found) for state, found in runs.items()}


def processor_time(programs: Programs) -> dict[str, float]:
    """Per cent of a core that our receiver takes for a 60 Hz tracker and 512x512 images at 30 per second together."""
    out = {}
    for name, case in (("tracker 60 Hz", (60, 600, 0, 0, 0, 0)), ("ultrasound 30/s", (30, 300, 512, 512, 1, 3))):
        result = converse(programs, ("C++" if programs.cpp else "ours", "ours"), case)
        out[name] = 100.0 * (result["cpu"] or 0.0) / (case[1] / case[0])
    out["both"] = sum(out.values())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, fewer cases")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only cases whose name holds this text; no throughput")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    cases = {n: c for n, c in CASES.items() if options.only in n and not (options.quick and "60/s" in n)}
    report: dict[str, Any] = {"when": time.strftime("%Y-%m-%d %H:%M"), "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(Path(folder))
        if not programs.cpp:
            print("libopenigtlink-dev and g++ are not installed: nothing is compared with the C++ library")
        report["latency_ms"] = latency(programs, cases, rounds)
        if not options.only:
            report["throughput_per_s"] = throughput(programs, rounds)
            report["contention_ms"] = contention(programs, rounds)
            report["receiver_cpu_percent"] = processor_time(programs)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def show(report: dict[str, Any]) -> None:
    print("\none-way latency, ms: p50 / p99 (delivered of sent); ours: delivered to the program, [stamped]")
    for name, pairs in report["latency_ms"].items():
        print(name)
        reference = pairs.get("C++ -> C++", {}).get("one_way")
        for pair, f in pairs.items():
            if f.get("one_way") is None:
                print(f"  {pair:<18} nothing arrived")
                continue
            text = f"{f['one_way']['p50']:.3f} / {f['one_way']['p99']:.3f}"
            if pair.endswith("ours"):
                text += f"  [{f['stamped']['p50']:.3f} / {f['stamped']['p99']:.3f}]"
            ratio = ""
            if reference is not None and pair == "ours -> ours":
                ratio = (
                    f"  {reference['p50'] / f['one_way']['p50']:.2f} x as fast as C++ "
                    f"[{reference['p50'] / f['stamped']['p50']:.2f}]"
                )
            lost = "" if f["delivered"] == f["of"] and not f["spliced"] else f"  SPLICED {f['spliced']}"
            print(f"  {pair:<18} {text}  ({f['delivered']} of {f['of']}){lost}{ratio}")
    for name, pairs in report.get("throughput_per_s", {}).items():
        print(f"throughput {name}: " + ", ".join(f"{pair} {rate:.0f}/s" for pair, rate in pairs.items()))
    if "contention_ms" in report:
        idle, busy = report["contention_ms"]["idle"], report["contention_ms"]["busy"]
        print(
            f"TRANSFORM 100 Hz, stamped: idle p99 {idle['stamped']['p99']:.3f}, beside a busy thread "
            f"{busy['stamped']['p99']:.3f} (limit: idle + 2); delivered {idle['one_way']['p99']:.3f}, "
            f"{busy['one_way']['p99']:.3f}"
        )
        cpu = report["receiver_cpu_percent"]
        print("receiver, % of a core: " + ", ".join(f"{k} {v:.1f}" for k, v in cpu.items()) + " (limit 5)")


if __name__ == "__main__":
    main()
