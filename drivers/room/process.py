"""One simulated device in a process of its own: ``python -m drivers.room.process``.

The parent writes one JSON object per line to standard input: first the job, then commands; the process answers in the
same way on standard output. When standard input ends (the parent is gone), the process ends too. A frame that could
not be sent within half a second of its time is dropped, as a device that was stopped would do.
"""

from __future__ import annotations

import heapq
import json
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drivers.openigtlink import codec
from drivers.openigtlink.sink import IgtlServer
from drivers.room.geometry import TOOLS, PatientGeometry, RoomSetup
from drivers.room.operator import MIN_DURATION_S, Script
from drivers.room.tracker import TrackerSimulator, delays
from nav.runtime.events import event_to_dict

__all__ = ["main"]

#: Before it begins, the room rests at script times from here on.
_WAITING_FROM_S = -7200.0
_TOO_LATE_NS = 500_000_000
_AHEAD_NS = 100_000_000


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


@dataclass
class _Loss:
    """A forced drop-out: tools not seen in exposures from ``from_ns`` to ``until_ns`` (local time)."""

    tools: frozenset[str]
    from_ns: int
    until_ns: int


@dataclass
class _State:
    """What the control thread tells the sending thread."""

    waiting: Script
    start_ns: int
    script: Script | None = None
    begin_ns: int = 0
    generation: int = 0
    losses: list[_Loss] = field(default_factory=list)
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def script_at(self, local_ns: int) -> tuple[Script, float]:
        """The script in force at a local time, and its time, s."""
        with self.lock:
            if self.script is not None and local_ns >= self.begin_ns:
                return self.script, (local_ns - self.begin_ns) * 1e-9
            return self.waiting, _WAITING_FROM_S + (local_ns - self.start_ns) * 1e-9

    def is_lost(self, tool: str, local_ns: int) -> bool:
        """Whether a forced drop-out hides the tool."""
        with self.lock:
            return any(tool in loss.tools and loss.from_ns <= local_ns < loss.until_ns for loss in self.losses)


class _Device(ABC):
    """Common to all devices: the job, the server, the control thread."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.setup = RoomSetup.from_dict(job["setup"])
        facts = json.loads((Path(job["patient"]) / "model.json").read_text(encoding="utf-8"))
        self.geometry = PatientGeometry.from_dict(facts["geometry"])
        self.seed = int(job["seed"])
        self.offset_ns = int(job["clock_offset_ns"])
        waiting = Script.build(self.geometry, self.setup, MIN_DURATION_S, self.seed)
        self.state = _State(waiting, int(job["start_ns"]))
        if job.get("begin"):
            self._begin(job["begin"])
        for kernel in codec.KERNELS:
            kernel.compile()
        self.server = IgtlServer(job["host"], int(job["port"]), name="PlusServer", allow=self.setup.simulation.allow)

    def _begin(self, order: dict[str, Any]) -> None:
        script = Script.build(self.geometry, self.setup, float(order["duration_s"]), self.seed)
        with self.state.lock:
            self.state.script, self.state.begin_ns = script, int(order["begin_ns"])
            self.state.generation += 1

    def obey(self, order: dict[str, Any]) -> None:
        """Carry out one command; runs in the control thread."""
        kind = order.get("command")
        if kind == "begin":
            self._begin(order)
        elif kind == "lose":
            tools = frozenset(order.get("tools") or TOOLS)
            loss = _Loss(tools, int(order["from_ns"]), int(order["until_ns"]))
            with self.state.lock:
                self.state.losses = [x for x in self.state.losses if x.until_ns > time.monotonic_ns() - 10**9] + [loss]
        elif kind == "clients":
            _say(answer=order.get("id"), clients=len(self.server.clients), at_ns=time.monotonic_ns())
            return
        elif kind == "stop":
            self.state.stopping = True
        else:
            _say(answer=order.get("id"), error=f"unknown command {kind!r}")
            return
        _say(answer=order.get("id"), at_ns=time.monotonic_ns())

    def listen(self) -> None:
        """Read commands until the parent closes the pipe."""
        for line in sys.stdin:
            try:
                self.obey(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                _say(error=f"command {line.strip()[:200]!r}: {error}")
        self.state.stopping = True

    def run(self, ready_ns: Callable[[], int]) -> None:
        """Serve until told to stop."""
        with self.server.start():
            threading.Thread(target=self.listen, name="room-control", daemon=True).start()
            _say(ready=True, port=self.server.port, at_ns=ready_ns())
            self.work()

    @abstractmethod
    def work(self) -> None:
        """Send until told to stop."""

    def wait_until(self, local_ns: int) -> bool:
        """Sleep until a local time; False when the process shall stop."""
        while not self.state.stopping:
            left = local_ns - time.monotonic_ns()
            if left <= 0:
                return True
            time.sleep(min(left * 1e-9, 0.1))
        return False


class _Tracker(_Device):
    """Four tools at 60 Hz, and the operator's foot switch."""

    def work(self) -> None:
        queue: list[tuple[int, int, Callable[[], object], int]] = []
        number = 0
        until_ns, generation = time.monotonic_ns(), self.state.generation
        simulators: dict[int, TrackerSimulator] = {}
        while not self.state.stopping:
            now = time.monotonic_ns()
            if self.state.generation != generation:
                # The procedure begins: what was prepared beyond that moment belongs to a rest that will not be.
                generation = self.state.generation
                begin = self.state.begin_ns
                queue = [item for item in queue if item[3] < begin]
                heapq.heapify(queue)
                until_ns = min(until_ns, begin)
                number = self._schedule_events(queue, number)
            if until_ns < now - _TOO_LATE_NS:
                until_ns = now
            if until_ns < now + _AHEAD_NS:
                number, until_ns = self._prepare(queue, number, until_ns, now + 2 * _AHEAD_NS, simulators)
            while queue and queue[0][0] <= time.monotonic_ns():
                due, _, send, _ = heapq.heappop(queue)
                if due > now - _TOO_LATE_NS:
                    send()
            if queue:
                self.wait_until(min(queue[0][0], now + _AHEAD_NS // 2))

    def _schedule_events(self, queue: list[tuple[int, int, Callable[[], object], int]], number: int) -> int:
        script, begin = self.state.script, self.state.begin_ns
        assert script is not None
        lag = delays(self.setup.simulation, self.seed, 5, 0, len(script.events))
        # One foot switch: a press never overtakes the one before it.
        sent_s = np.maximum.accumulate(np.array([e.time_s for e in script.events]) + lag)
        device = str(self.job["footswitch"])
        for n, item in enumerate(script.events):
            at = begin + round(item.time_s * 1e9)
            text = json.dumps(event_to_dict(item.event))
            if device and at > time.monotonic_ns() - _TOO_LATE_NS:
                number += 1
                heapq.heappush(
                    queue,
                    (begin + round(float(sent_s[n]) * 1e9), number,
                     lambda text=text, at=at: self.server.publish_string(  # type: ignore[misc]
                         device, text, sender_ns=at + self.offset_ns), -1),
                )  # fmt: skip
        return number

    def _prepare(
        self,
        queue: list[tuple[int, int, Callable[[], object], int]],
        number: int,
        from_ns: int,
        to_ns: int,
        simulators: dict[int, TrackerSimulator],
    ) -> tuple[int, int]:
        """Queue the frames exposed from ``from_ns`` up to ``to_ns``, or up to where the procedure begins."""
        with self.state.lock:
            begin, script = self.state.begin_ns, self.state.script
        if script is not None and from_ns < begin:
            to_ns = min(to_ns, begin)
        script, start_s = self.state.script_at(from_ns)
        end_s = start_s + (to_ns - from_ns) * 1e-9
        origin = from_ns - round(start_s * 1e9)
        simulator = simulators.setdefault(id(script), TrackerSimulator(script, self.seed))
        for block_number in range(int(np.floor(start_s)) - 1, int(np.ceil(end_s)) + 1):
            block = simulator.block(block_number)
            for n in np.flatnonzero((block.acquired_s >= start_s) & (block.acquired_s < end_s)):
                at = origin + round(float(block.acquired_s[n]) * 1e9)
                due = origin + round(float(block.sent_s[n]) * 1e9)
                tools = [(name, block.matrices[n, t]) for t, name in enumerate(TOOLS) if block.seen[n, t]]
                number += 1
                heapq.heappush(queue, (due, number, lambda tools=tools, at=at: self._send(tools, at), at))  # type: ignore[misc]
        return number, to_ns

    def _send(self, tools: list[tuple[str, Any]], at_ns: int) -> None:
        for name, matrix in tools:
            if not self.state.is_lost(name, at_ns):
                self.server.publish_transform(
                    self.job["devices"][name],
                    matrix,
                    sender_ns=at_ns + self.offset_ns,
                    metadata={"TransformStatus": "OK"},
                )


class _Imager(_Device):
    """A device that sends one picture per period; it draws nothing while nobody watches."""

    rate_hz = 30.0
    purpose = 6

    @abstractmethod
    def draw(self, script: Script, script_s: float, frame: int) -> tuple[Any, Any]:
        """The picture (j, i) and its mm_from_index."""

    def work(self) -> None:
        period = round(1e9 / self.rate_hz)
        at = time.monotonic_ns()
        frame = 0
        while self.wait_until(at):
            script, script_s = self.state.script_at(at)
            if self.server.clients:
                picture, matrix = self.draw(script, script_s, frame)
                lag = delays(self.setup.simulation, self.seed, self.purpose, frame, 1)[0]
                if not self.wait_until(at + round(lag * 1e9)):
                    return
                self.server.publish_image(
                    self.job["device"], picture, matrix, sender_ns=at + self.offset_ns, metadata={"ImageStatus": "OK"}
                )
            frame += 1
            at += period
            late = time.monotonic_ns() - at
            if late > period:
                at += late // period * period


class _Ultrasound(_Imager):
    rate_hz = 30.0
    purpose = 6

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        from drivers.room.patient import PatientModel
        from drivers.room.ultrasound import KERNELS, UltrasoundSimulator

        for kernel in KERNELS:
            kernel.compile()
        self.simulator = UltrasoundSimulator(PatientModel.load(Path(job["patient"])), self.setup)
        self.simulator.image(self.state.waiting, 0.0)

    def draw(self, script: Script, script_s: float, frame: int) -> tuple[Any, Any]:
        return self.simulator.image(script, script_s, frame), self.setup.probe_from_image


class _Fluoro(_Imager):
    purpose = 7

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        from drivers.room.fluoro import KERNELS, FluoroSimulator
        from drivers.room.patient import PatientModel

        for kernel in KERNELS:
            kernel.compile()
        self.rate_hz = float(self.setup.simulation.fluoro_fps)
        self.simulator = FluoroSimulator(PatientModel.load(Path(job["patient"])), self.setup)
        self.simulator.image(self.state.waiting, 0.0)

    def draw(self, script: Script, script_s: float, frame: int) -> tuple[Any, Any]:
        return self.simulator.image(script, script_s, frame)


_KINDS: dict[str, type[_Device]] = {"tracker": _Tracker, "ultrasound": _Ultrasound, "fluoro": _Fluoro}


def main() -> int:
    """Entry point of a device process; the exit status is 0 after an orderly stop, 1 after an error (it is told)."""
    job = json.loads(sys.stdin.readline())
    if job["kind"] != "tracker":
        # The image makers compute in bursts that a real scanner computes on its own hardware.
        os.nice(15)
    try:
        device = _KINDS[job["kind"]](job)
        device.run(time.monotonic_ns)
    except Exception as error:  # whatever it is, the parent must hear of it
        _say(error=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
