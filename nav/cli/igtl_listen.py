"""``ablation-nav igtl listen``: what a server really sends."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from drivers.openigtlink.selection import Filter
from nav.cli.endpoints import until_interrupted
from nav.cli.errors import CommandError, ExitCode
from nav.cli.igtl_source import Listener, prepare, print_json
from nav.cli.igtl_view import WIDTH, line, view
from nav.cli.progress import Steps
from nav.config.room import SourceConfig

__all__ = ["listen_to"]

_REDRAW_S = 0.25
_LINE_S = 1.0


def listen_to(
    config: SourceConfig,
    *,
    duration_s: float | None,
    as_json: bool,
    as_lines: bool,
    wanted: Filter,
    save: Path | None,
) -> int:
    """Listen until the time is over, the connection has ended for good, or Ctrl-C; then say what was seen.

    Returns
    -------
    int
        `ExitCode.CONNECTION` when there never was a connection.
    """
    steps = Steps()
    prepare(steps)
    with until_interrupted() as stop, Listener(config, wanted, save) as listener:
        end_ns = None if duration_s is None else listener.since_ns + round(duration_s * 1e9)
        if as_lines:
            _in_lines(listener, stop, end_ns)
        elif sys.stderr.isatty():
            _live(listener, stop, end_ns)
        else:
            _plain(listener, stop, end_ns, steps)
        listener.end()
        report = listener.report()
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        shown = _view(listener, console.width)
    if as_lines:
        print_json({"kind": "report", **report}, one_line=True)
    elif as_json:
        print_json(report)
    else:
        console.print(shown, highlight=False)
    if save is not None:
        steps.say(f"  {save}: {listener.saved} messages; `ablation-nav igtl decode {save}` shows them")
    if listener.problem:
        raise CommandError(listener.problem)
    if not report["connections"]:
        last = report["link"][-1]["detail"] if report["link"] else "not tried"
        raise CommandError(
            f"{report['address']}: never connected ({last}); start the server, or correct host and port",
            ExitCode.CONNECTION,
        )
    return ExitCode.OK


def _goes_on(listener: Listener, stop: threading.Event, end_ns: int | None, step_s: float) -> bool:
    """Wait one step; False when it is time to end."""
    left_s = step_s if end_ns is None else (end_ns - listener.clock.now_ns()) * 1e-9
    stop.wait(max(min(step_s, left_s), 0.0))
    return not stop.is_set() and not listener.over.is_set() and (end_ns is None or left_s > step_s)


def _live(listener: Listener, stop: threading.Event, end_ns: int | None) -> None:
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        while _goes_on(listener, stop, end_ns, _REDRAW_S):
            live.update(_view(listener, console.width), refresh=True)


def _plain(listener: Listener, stop: threading.Event, end_ns: int | None, steps: Steps) -> None:
    while _goes_on(listener, stop, end_ns, _LINE_S):
        table, lock = listener.look()
        with lock:
            steps.say(line(table, listener.clock.now_ns(), listener.since_ns))


def _in_lines(listener: Listener, stop: threading.Event, end_ns: int | None) -> None:
    while _goes_on(listener, stop, end_ns, _LINE_S):
        print_json({"kind": "second", **listener.report()}, one_line=True)


def _view(listener: Listener, width: int) -> RenderableType:
    statistics = listener.source.statistics()
    table, lock = listener.look()
    with lock:
        return view(
            table,
            listener.clock.now_ns(),
            listener.since_ns,
            f"{listener.config.host}:{listener.config.port}",
            dropped=statistics.dropped,
            skipped=statistics.skipped,
            width=width,
        )
