"""The live compute thread: drains the inbox, ticks the core, publishes the snapshot, records the tick."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict

from nav.runtime.clock import Clock
from nav.runtime.core import NavigationCore
from nav.runtime.events import OperatorEvent
from nav.runtime.recorder import Recorder
from nav.runtime.slots import EventQueue, Inbox, LatestSlot
from nav.runtime.snapshot import NavigationSnapshot
from nav.runtime.summary import navigation_numbers
from nav.runtime.warmup import use_one_thread

__all__ = ["ComputeThread"]

#: A tick at least this often, so that ages and the gate move on when nothing arrives.
IDLE_TICK_S = 0.02
#: The tools of one tracker frame arrive as separate messages, each within this time of the one before ...
COALESCE_S = 0.0006
#: ... and a tick waits no longer than this for them.
COALESCE_LIMIT_S = 0.004
#: The states of the streams go into the recording this often.
HEALTH_PERIOD_NS = 1_000_000_000


class ComputeThread:
    """Runs a `NavigationCore` on one thread.

    Parameters
    ----------
    core : NavigationCore
        Owned by the thread from `start` on.
    inbox : Inbox
    clock : Clock
    on_tick : callable, optional
        Called on the compute thread with every snapshot (summary, truth); must be quick.
    """

    def __init__(
        self,
        core: NavigationCore,
        inbox: Inbox,
        clock: Clock,
        *,
        recorder: Recorder | None = None,
        on_tick: Callable[[NavigationSnapshot], None] | None = None,
    ) -> None:
        self._core = core
        core.streams.utc_minus_local_ns = clock.utc_ns() - clock.now_ns()
        self._inbox = inbox
        self._clock = clock
        self._recorder = recorder
        self._on_tick = on_tick
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._faults: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._health_recorded_ns = -HEALTH_PERIOD_NS
        self.events = EventQueue(inbox.wake)
        self.snapshots: LatestSlot[NavigationSnapshot] = LatestSlot()
        self.error = ""
        #: Called on the compute thread after each snapshot, to wake who draws it.
        self.on_published: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start ticking."""
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the current tick and end; safe to call twice."""
        self._stop.set()
        self._inbox.wake()
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None

    def submit(self, event: OperatorEvent) -> None:
        """Queue an operator event; from any thread, never dropped."""
        self.events.post(event)

    def set_fault(self, kind: str, text: str) -> None:
        """Report a fault of another part (render worker, recorder); it stays until it is cleared with an empty text."""
        with self._lock:
            kept = tuple(f for f in self._faults if not f.startswith(kind + ": "))
            self._faults = (*kept, f"{kind}: {text}") if text else kept
        self._inbox.wake()

    def set_recorder(self, recorder: Recorder | None) -> None:
        """Take another recorder, or none, from the next tick on."""
        self._recorder = recorder

    @property
    def alive(self) -> bool:
        """False once the thread has died or was stopped; the screen then blanks by the snapshot's age."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        try:
            use_one_thread()
            while not self._stop.is_set():
                if self._inbox.wait(IDLE_TICK_S):
                    self._let_the_frame_arrive()
                self._tick()
        except Exception:
            # No snapshot follows this one, so every number is blank within the snapshot limit; the reason is kept.
            self.error = traceback.format_exc()

    def _let_the_frame_arrive(self) -> None:
        """Wait until nothing more comes for a moment: a tick without the last tool would show the frame before."""
        waited_s, before = 0.0, -1
        while waited_s < COALESCE_LIMIT_S:
            pending = self._inbox.pending
            if pending == before:
                return
            before = pending
            self._stop.wait(COALESCE_S)
            waited_s += COALESCE_S

    def _tick(self) -> None:
        batch = self._inbox.drain()
        events = self.events.drain()
        now_ns = self._clock.now_ns()
        recorder = self._recorder
        with self._lock:
            faults = self._faults
        if recorder is not None and recorder.fault:
            faults = (*faults, f"recorder: {recorder.fault}")
        snapshot = self._core.tick(batch, events, now_ns, faults=faults, recording=recorder is not None)
        self.snapshots.put(snapshot)
        self.on_published()
        if recorder is not None:
            for event in events:
                recorder.event(event, snapshot.sequence, now_ns)
            numbers = navigation_numbers(snapshot)
            recorder.tick(snapshot.sequence, now_ns, batch.cut, snapshot.events, numbers, batch.overflowed, faults)
            if now_ns - self._health_recorded_ns >= HEALTH_PERIOD_NS:
                self._health_recorded_ns = now_ns
                recorder.health(now_ns, [asdict(stream) for stream in snapshot.streams])
        if self._on_tick is not None:
            self._on_tick(snapshot)
