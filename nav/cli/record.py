"""``ablation-nav record``: keep the streams of a room as received, without guiding."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from nav.cli.errors import CommandError

__all__ = ["record"]

HELP = """Record the streams of a room without guiding: the bytes as received, with their arrival times.

Ends after --duration, or with Ctrl-C. A killed process loses at most the last second.

\b
Example:
  ablation-nav record ROOM.toml --out OUT --duration 60
"""


def record(
    room: Annotated[Path, typer.Argument(metavar="ROOM.toml", help="Room configuration.")],
    out: Annotated[Path, typer.Option(help="Folder for recording.mcap and summary.json.")],
    duration: Annotated[float | None, typer.Option(help="End after this many seconds.")] = None,
) -> None:
    """See ``HELP``."""
    from nav.cli.live import LiveStreams
    from nav.cli.progress import Steps, warm_up_visibly
    from nav.cli.run_log import RunLog, write_summary
    from nav.config.load import load_toml
    from nav.config.room import RoomConfig
    from nav.runtime.clock import SystemClock
    from nav.runtime.essentials import CaseEssentials
    from nav.runtime.plugins import make_source

    config = load_toml(room, RoomConfig)
    steps = Steps()
    warm_up_visibly(steps)
    clock = SystemClock()
    log = RunLog()
    out.mkdir(parents=True, exist_ok=True)
    sources = tuple(make_source(source, clock) for source in config.sources)
    live = LiveStreams(config, sources, clock, CaseEssentials(""), out=out, on_tick=log.on_tick)
    ended = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: ended.set())
    start_ns = clock.now_ns()
    live.start()
    try:
        with steps.step("Recording") as update:
            while not ended.wait(0.2):
                elapsed_s = (clock.now_ns() - start_ns) / 1e9
                snapshot = live.compute.snapshots.peek()
                states = {} if snapshot is None else {s.name: s.state for s in snapshot.streams}
                text = ", ".join(f"{name} {state}" for name, state in states.items())
                update(-1.0 if duration is None else elapsed_s / duration, f"{elapsed_s:.0f} s; {text}")
                if live.problem or (duration is not None and elapsed_s >= duration):
                    break
    finally:
        signal.signal(signal.SIGINT, previous)
        live.stop()
    write_summary(out, config, live.core.streams, log, sources=live.source_counts())
    if live.problem:
        raise CommandError(f"the recording is not complete: {live.problem}")
    steps.say(f"  wrote {out / 'recording.mcap'} and {out / 'summary.json'}")
