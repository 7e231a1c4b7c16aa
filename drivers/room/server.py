"""The simulated procedure room: starts one process per device, begins the procedure, disturbs it, stops it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

import drivers
from drivers.room.anatomy import PatientParameters
from drivers.room.geometry import TOOLS, RoomError, RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import PatientModel, build_patient
from drivers.room.truth import GroundTruth, write_truth
from nav.config.room import RoomConfig, SourceConfig

__all__ = ["RoomProcesses", "start_room"]

DEVICES = ("tracker", "ultrasound", "fluoro")

_LEAD_S = 0.4
_SINGLE_THREADED = {
    "NUMBA_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass
class _Child:
    """One device process and what it has said."""

    name: str
    process: subprocess.Popen[str]
    answers: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    port: int = 0
    errors: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Reader thread: passes on every answer, then notes the end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                facts = json.loads(line)
            except ValueError:
                self.errors.append(line.strip())
                continue
            if "error" in facts:
                self.errors.append(str(facts["error"]))
            self.answers.put(facts)
        self.answers.put({"ended": True})

    def tell(self, **order: Any) -> None:
        """Send a command.

        Raises
        ------
        RoomError
            When the process is gone.
        """
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise RoomError(f"simulated {self.name}: its process has ended {self.why()}") from None

    def wait_for(self, key: str, timeout_s: float, value: Any = None) -> dict[str, Any]:
        """The next answer that holds ``key`` (with ``value``, if given).

        Raises
        ------
        RoomError
            When it does not come in time, or the process ends or reports an error.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                facts = self.answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise RoomError(f"simulated {self.name}: no answer within {timeout_s:g} s") from None
            if key in facts and (value is None or facts[key] == value):
                if "error" in facts:
                    raise RoomError(f"simulated {self.name}: {facts['error']}")
                return facts
            if "ended" in facts or ("error" in facts and self.process.poll() is not None):
                raise RoomError(f"simulated {self.name}: its process has ended {self.why()}")

    def why(self) -> str:
        """What is known of its end."""
        code = self.process.poll()
        said = "; ".join(self.errors) or "it said nothing"
        return f"(exit status {code}): {said}"


class RoomProcesses:
    """A running simulated room; a context manager. Made by `start_room`.

    Attributes
    ----------
    room : RoomConfig
        The configuration with the ports that are really served: what the navigator connects to.
    patient : PatientModel
    truth : GroundTruth or None
        From `begin` on.
    """

    def __init__(
        self,
        room: RoomConfig,
        patient: PatientModel,
        setup: RoomSetup,
        seed: int,
        truth_path: Path | None,
        automatic_ports: bool,
    ) -> None:
        self.room, self.patient, self.setup, self.seed = room, patient, setup, seed
        self.truth: GroundTruth | None = None
        self._truth_path = truth_path
        self._automatic = automatic_ports
        self._start_ns = time.monotonic_ns()
        utc_minus_local = time.time_ns() - time.monotonic_ns()
        self._offset_ns = utc_minus_local + round(setup.simulation.clock_offset_s * 1e9)
        self._sources: dict[str, SourceConfig] = {s.name: s for s in room.sources if s.name in DEVICES}
        self._children: dict[str, _Child] = {}
        self._ports: dict[str, int] = {}
        self._spent_s = 0.0
        self._command = 0

    # ------------------------------------------------------------------------------------------------------- life

    def start(self, timeout_s: float = 60.0) -> None:
        """Start every device of the room and wait until each is ready.

        Raises
        ------
        RoomError
        """
        if not self._sources:
            raise RoomError(f"room {self.room.name!r}: no source is named {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
        try:
            for name in self._sources:
                self._spawn(name)
            for name in self._sources:
                self._await_ready(name, timeout_s)
        except BaseException:
            self.stop()
            raise
        served = tuple(
            s.model_copy(update={"port": self._ports[s.name]}) if s.name in self._ports else s
            for s in self.room.sources
        )
        self.room = self.room.model_copy(update={"sources": served})

    def _spawn(self, name: str) -> None:
        source = self._sources[name]
        job: dict[str, Any] = {
            "kind": name,
            "host": source.host,
            "port": self._ports.get(name, 0 if self._automatic else source.port),
            "seed": self.seed,
            "setup": self.setup.to_dict(),
            "patient": str(self.patient.folder),
            "start_ns": self._start_ns,
            "clock_offset_ns": self._offset_ns,
            "footswitch": source.footswitch,
            "devices": _tool_devices(source),
            "device": source.images[0].device if source.images else "Image",
        }
        if self.truth is not None:
            job["begin"] = {"begin_ns": self.truth.begin_ns, "duration_s": self.truth.script.duration_s}
        root = str(Path(drivers.__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "drivers.room.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_SINGLE_THREADED, "PYTHONPATH": path},
            # Ctrl-C in the terminal is for the parent: it stops its devices in order. A group of its own does that; a
            # session of its own would also take a full share of the processor from the navigator (autogroup
            # scheduling), which the real devices, being other computers, do not.
            process_group=0,
        )
        child = _Child(name, process)
        self._children[name] = child
        threading.Thread(target=child.read, name=f"room-{name}", daemon=True).start()
        child.tell(**job)

    def _await_ready(self, name: str, timeout_s: float) -> None:
        child = self._children[name]
        self._ports[name] = int(child.wait_for("ready", timeout_s)["port"])

    def stop(self) -> None:
        """Stop every device; safe to call twice."""
        for child in self._children.values():
            if child.process.poll() is None:
                try:
                    child.tell(command="stop")
                except RoomError:
                    continue
        for child in self._children.values():
            try:
                child.process.wait(3.0)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait(3.0)
            self._close_pipes(child)

    @staticmethod
    def _close_pipes(child: _Child) -> None:
        for pipe in (child.process.stdin, child.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -------------------------------------------------------------------------------------------------- procedure

    def _ask(self, name: str, timeout_s: float, **order: Any) -> dict[str, Any]:
        if name not in self._children:
            raise RoomError(f"no simulated device is named {name!r}; this room has {', '.join(self._children)}")
        self._command += 1
        self._children[name].tell(id=self._command, **order)
        return self._children[name].wait_for("answer", timeout_s, self._command)

    def begin(self, duration_s: float) -> GroundTruth:
        """Begin the scripted procedure in 0.4 s (script time 0); writes the ground truth, which is returned.

        Raises
        ------
        RoomError
            When the duration is too short, the procedure runs already, or a device does not follow in time.
        """
        if self.truth is not None:
            raise RoomError("the procedure has begun already; start another room for another one")
        script = Script.build(self.patient.geometry, self.setup, duration_s, self.seed)
        begin_ns = time.monotonic_ns() + round(_LEAD_S * 1e9)
        truth = GroundTruth(script, begin_ns, self._offset_ns)
        for name, child in self._children.items():
            if child.process.poll() is None:
                answer = self._ask(name, 5.0, command="begin", begin_ns=begin_ns, duration_s=duration_s)
                # What a device prepared before it heard of the beginning reaches at most 0.2 s ahead.
                if int(answer["at_ns"]) > begin_ns:
                    raise RoomError(f"simulated {name}: too slow to begin in time; this computer is overloaded")
        self.truth = truth
        if self._truth_path is not None:
            write_truth(self._truth_path, truth)
        return truth

    def wait_for_client(self, name: str = "tracker", timeout_s: float | None = None) -> bool:
        """Wait until someone has connected to a device; False when the time is over."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while end is None or time.monotonic() < end:
            if int(self._ask(name, 5.0, command="clients")["clients"]) > 0:
                return True
            time.sleep(0.1)
        return False

    # ------------------------------------------------------------------------------------------------ disturbance

    def lose(self, tools: tuple[str, ...] = (), duration_ms: float = 300.0, delay_ms: float = 50.0) -> tuple[int, int]:
        """The tracker does not see some tools (default: all) for a while.

        Returns
        -------
        (int, int)
            Local times (ns) from and until which exposures are missing.
        """
        unknown = sorted(set(tools) - set(TOOLS))
        if unknown:
            raise RoomError(f"no such tool: {', '.join(unknown)}; known: {', '.join(TOOLS)}")
        start = time.monotonic_ns() + round(delay_ms * 1e6)
        end = start + round(duration_ms * 1e6)
        self._ask("tracker", 5.0, command="lose", tools=list(tools), from_ns=start, until_ns=end)
        return start, end

    def kill(self, name: str) -> None:
        """Kill a device as a power cut would (SIGKILL); `restart` brings it back on the same port."""
        child = self._child(name)
        self._spent_s += _cpu_s(child.process.pid)
        child.process.kill()
        child.process.wait(5.0)
        self._close_pipes(child)

    def suspend(self, name: str) -> None:
        """Freeze a device: its link stays open and falls silent. `resume` lets it go on."""
        psutil.Process(self._child(name).process.pid).suspend()

    def resume(self, name: str) -> None:
        """Let a suspended device go on."""
        psutil.Process(self._child(name).process.pid).resume()

    def restart(self, name: str, timeout_s: float = 60.0) -> None:
        """Start a killed device again, on its port and in the same procedure."""
        if self._child(name).process.poll() is None:
            self.kill(name)
        self._spawn(name)
        self._await_ready(name, timeout_s)

    def _child(self, name: str) -> _Child:
        if name not in self._children:
            raise RoomError(f"no simulated device is named {name!r}; this room has {', '.join(self._children)}")
        return self._children[name]

    # ------------------------------------------------------------------------------------------------ observation

    @property
    def ports(self) -> dict[str, int]:
        """Device name → port."""
        return dict(self._ports)

    def alive(self) -> dict[str, bool]:
        """Device name → whether its process runs."""
        return {name: child.process.poll() is None for name, child in self._children.items()}

    def problems(self) -> list[str]:
        """One line per device that has ended or reported an error."""
        return [
            f"simulated {name}: {child.why() if child.process.poll() is not None else '; '.join(child.errors)}"
            for name, child in self._children.items()
            if child.process.poll() is not None or child.errors
        ]

    def cpu_seconds(self) -> float:
        """CPU time spent by all device processes so far, start-up included: take differences."""
        return self._spent_s + sum(_cpu_s(c.process.pid) for c in self._children.values() if c.process.poll() is None)


def _cpu_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _tool_devices(source: SourceConfig) -> dict[str, str]:
    """Tool name → device name on the wire."""
    named = {t.transform.removesuffix("ToTracker"): t.device for t in source.tools}
    return {tool: named.get(tool, f"{tool}ToTracker") for tool in TOOLS}


def start_room(
    room: RoomConfig,
    *,
    seed: int | None = None,
    truth_path: Path | None = None,
    patient: PatientModel | None = None,
    patient_cache: Path | None = None,
    automatic_ports: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    timeout_s: float = 60.0,
) -> RoomProcesses:
    """Start the devices of a simulated room; they rest until `RoomProcesses.begin`.

    Parameters
    ----------
    room : RoomConfig
        With ``[simulation]``; its sources named ``tracker``, ``ultrasound`` and ``fluoro`` are played.
    seed : int, optional
        Of noise and operator; default: that of the configuration.
    truth_path : Path, optional
        Where `RoomProcesses.begin` writes the ground truth.
    patient : PatientModel, optional
        Default: the built-in one (cached under ``patient_cache``).
    automatic_ports : bool
        Let the system choose free ports; `RoomProcesses.room` has them.
    progress : callable
        Called with a short text before each step.

    Raises
    ------
    RoomError
    """
    setup = RoomSetup.from_room(room)
    if patient is None:
        parameters = PatientParameters(seed=setup.simulation.patient_seed)
        patient = build_patient(parameters, patient_cache, progress)
    number = setup.simulation.seed if seed is None else seed
    processes = RoomProcesses(room, patient, setup, number, truth_path, automatic_ports)
    progress("starting the simulated devices")
    processes.start(timeout_s)
    return processes
