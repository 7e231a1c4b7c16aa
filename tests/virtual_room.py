"""Plays the simulated room's tracker into a navigation core on a virtual clock: no sockets, no threads, no waiting."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator

import numpy as np

from drivers.room.operator import Script
from drivers.room.tracker import measurements
from nav.config.load import load_toml, shipped_config
from nav.config.room import RoomConfig
from nav.geometry.poses import PoseStatus
from nav.runtime.core import NavigationCore
from nav.runtime.events import event_to_dict
from nav.runtime.messages import LinkMessage, LinkState, Message, PoseMessage, TextMessage, ToolReport
from nav.runtime.slots import CutFeed
from nav.runtime.snapshot import NavigationSnapshot

START_NS = 1_000_000_000_000
UTC_AHEAD_NS = 1_700_000_000_000_000_000


def simulated_room() -> RoomConfig:
    """The default room, tracker only."""
    room = load_toml(shipped_config("rooms", "simulated.toml"), RoomConfig)
    return room.model_copy(update={"sources": tuple(s for s in room.sources if s.name == "tracker")})


def room_messages(script: Script, end_s: float, *, offset_ns: int = 3_000_000_000) -> list[Message]:
    """Everything the tracker's connection delivers from script time -1 s on, in order of arrival."""
    sim = script.setup.simulation
    raw: list[tuple[int, int, str, int, object]] = []
    for n, m in enumerate(measurements(script, -1.0, end_s)):
        arrival = START_NS + round(m.sent_s * 1e9)
        stamp = START_NS + round(m.acquired_s * 1e9) + UTC_AHEAD_NS + offset_ns
        heapq.heappush(raw, (arrival, n, m.tool, stamp, m.matrix))
    for n, item in enumerate(script.events):
        arrival = START_NS + round((item.time_s + sim.latency_ms * 1e-3) * 1e9)
        heapq.heappush(raw, (arrival, 10_000_000 + n, "FootSwitch", 0, json.dumps(event_to_dict(item.event))))
    link = LinkMessage("tracker", 0, START_NS - 1_100_000_000, "", None, {}, LinkState.CONNECTED)
    messages: list[Message] = [link]
    while raw:
        arrival, _, name, stamp, content = heapq.heappop(raw)
        number = len(messages)
        if name == "FootSwitch":
            assert isinstance(content, str)
            messages.append(TextMessage("tracker", number, arrival, name, None, {}, content))
            continue
        wire = f"{name}ToTracker" if "To" not in name else name
        # The wire carries float32.
        matrix = np.asarray(content, dtype=np.float32).astype(np.float64)
        report = ToolReport(wire, PoseStatus.OK, matrix)
        messages.append(PoseMessage("tracker", number, arrival, wire, stamp, {}, (report,)))
    return messages


def play(
    core: NavigationCore, messages: list[Message], *, until_ns: int, tick_ns: int = 8_000_000
) -> Iterator[NavigationSnapshot]:
    """Tick the core at a fixed pace; each tick takes what has arrived by then."""
    feed = CutFeed(messages)
    arrivals = np.array([m.arrival_ns for m in messages])
    now = int(arrivals[0])
    while now <= until_ns:
        count = int(np.searchsorted(arrivals, now, side="right"))
        yield core.tick(feed.take({"tracker": count}), [], now)
        now += tick_ns
