"""Computes zones in a process of its own, of lower priority: never on the live path, never on the display path.

One request at a time, and the newest wins: a request that is superseded ends at the next report of progress, and its
result is not delivered. The process is spawned, not forked (GNU OpenMP aborts in a forked child).
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numba

from nav.ablation.applicators import load_applicator
from nav.ablation.growth import compute_growth
from nav.ablation.prediction import Applied, predict_band, predict_box
from nav.ablation.thermal import load_tissue
from nav.geometry.directions import rigid_along
from nav.geometry.volume import Volume
from nav.runtime.predicted_zones import BoxPrediction, NeedlePrediction, Prediction, ZoneRequest

__all__ = ["ZoneWorker", "compute_zone"]

_STOP_S = 2.0


class _Superseded(Exception):
    """Something else is wanted by now."""


class ZoneWorker:
    """Computes what `want` asks for.

    Parameters
    ----------
    on_done : callable
        Called on a thread of the worker with every result that was still wanted when it was done.
    on_fault : callable
        Called with what went wrong: the process died, or a request failed.
    """

    def __init__(self, on_done: Callable[[Prediction], None], on_fault: Callable[[str], None]) -> None:
        self._on_done, self._on_fault = on_done, on_fault
        self._orders: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._wanted: ZoneRequest | None = None
        self._progress = ""
        self._process: Any = None
        self._sender: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Take orders from now on. The process itself starts with the first request: a room of charts needs none."""
        self._sender = threading.Thread(target=self._send, name="zone orders", daemon=True)
        self._sender.start()

    def stop(self) -> None:
        """End the process, whatever it does. Safe to call twice."""
        if self._sender is None or self._stopping:
            return
        self._stopping = True
        self._orders.put(("stop", None))
        self._sender.join(_STOP_S)
        if self._process is None:
            return
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(_STOP_S)

    def want(self, request: ZoneRequest | None) -> None:
        """What is wanted now (None: nothing). Cheap when it has not changed: call it with every snapshot."""
        if request != self._wanted:
            self._wanted = request
            self._progress = ""
            self._orders.put(("want", request))

    def set_vessels(self, vessels: Volume | None) -> None:
        """The vessels of the case from now on (above 0 inside)."""
        self._orders.put(("vessels", vessels))

    @property
    def progress(self) -> str:
        """What is being computed and how far it is, for the screen; empty when nothing is."""
        return self._progress if self._wanted is not None else ""

    def _send(self) -> None:
        pipe: Connection | None = None
        vessels: Volume | None = None
        while True:
            kind, value = self._orders.get()
            orders = [(kind, value)]
            if pipe is None:
                if kind == "stop":
                    return
                if kind == "vessels":
                    vessels = value
                if kind != "want" or value is None:
                    continue
                pipe = self._start_process()
                orders.insert(0, ("vessels", vessels))
            try:
                for order in orders:
                    pipe.send(order)
            except OSError:
                return  # The process has ended; `_receive` says so.
            if kind == "stop":
                return

    def _start_process(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="zones", daemon=True)
        self._process.start()
        theirs.close()
        threading.Thread(target=self._receive, args=(ours,), name="zone results", daemon=True).start()
        return ours

    def _receive(self, pipe: Connection) -> None:
        while True:
            try:
                kind, request, value = pipe.recv()
            except (EOFError, OSError):
                if not self._stopping:
                    self._progress = ""
                    self._on_fault("the process that computes zones has ended. Restart the program to compute others")
                return
            if request != self._wanted:
                continue
            if kind == "progress":
                share, text = value
                percent = "" if share < 0.0 else f" {100.0 * share:.0f} %"
                self._progress = f"tier {request.tier}{percent}" + (f" {text}" if share < 0.0 else "")
            elif kind == "failed":
                self._progress = ""
                self._on_fault(f"tier {request.tier}: {value}")
            else:
                self._progress = ""
                self._on_done(value)


def _serve(pipe: Connection) -> None:
    """The process: takes orders until it is told to stop or the pipe closes."""
    os.nice(19)
    # The display has the other processor; a count of 1 is that of a machine without one to spare.
    numba.set_num_threads(max(1, numba.get_num_threads() - 1))
    orders = _Orders(pipe)
    while True:
        try:
            request = orders.next_request()
            if request is None:
                return
            try:
                zone = compute_zone(request, orders.vessels, lambda *at, of=request: orders.report(of, *at))
                pipe.send(("done", request, zone))
            except _Superseded:
                continue
            except Exception as error:  # Told to the person; the process lives on for the next request.
                pipe.send(("failed", request, f"{type(error).__name__}: {error}"))
        except (EOFError, OSError):
            return


class _Orders:
    """What the process was told."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._wanted: ZoneRequest | None = None
        self._news = False
        self._stop = False
        self.vessels: Volume | None = None

    def next_request(self) -> ZoneRequest | None:
        """Wait for the next request; None to stop."""
        while not self._stop and not (self._news and self._wanted is not None):
            self._take()
        self._news = False
        return None if self._stop else self._wanted

    def _take(self) -> None:
        kind, value = self._pipe.recv()
        if kind == "stop":
            self._stop = True
        elif kind == "vessels":
            self.vessels = value
        else:
            self._wanted, self._news = value, True

    def report(self, request: ZoneRequest, share: float, text: str) -> None:
        """Tell how far it is; `_Superseded` when something else is wanted."""
        while self._pipe.poll():
            self._take()
        if self._stop or self._news:
            raise _Superseded
        self._pipe.send(("progress", request, (share, text)))


def compute_zone(
    request: ZoneRequest, vessels: Volume | None, report: Callable[[float, str], None] = lambda _share, _text: None
) -> Prediction:
    """Compute what is asked for.

    Parameters
    ----------
    request : ZoneRequest
    vessels : Volume or None
        Above 0 inside; counts in tier 2.
    report : callable
        Told the share done (negative: unknown) and what is done; what it raises ends the work.

    Raises
    ------
    ConfigError, ChartRangeError, NoHeatModelError
    """
    applicator, tissue = load_applicator(request.applicator), load_tissue(request.tissue)
    report(-1.0, "preparing")
    if request.tier == 1:
        growth = compute_growth(applicator, request.power_w, request.time_s, tissue)
        report(0.5, "band")
        band = None
        if not growth.whole.is_empty:
            band = predict_band(applicator, request.power_w, request.time_s, tissue, growth.whole)
        return NeedlePrediction(request, growth, band)
    pose = rigid_along(request.tip_ras, request.axis_ras, "TipToRas")
    applied = Applied(applicator, request.power_w, request.time_s, pose)
    return BoxPrediction(request, predict_box([applied], tissue, vessels=vessels, progress=report))
