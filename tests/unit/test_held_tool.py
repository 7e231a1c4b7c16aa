"""A needle that is sent only on change (Slicer): its link's heartbeat ages, not the pose."""

from __future__ import annotations

import numpy as np

from nav.config.load import parse_toml
from nav.config.room import RoomConfig
from nav.geometry.poses import PoseStatus
from nav.hud.freshness import needle_freshness
from nav.hud.hud_state import Freshness
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import SetPlan, StartGuidance
from nav.runtime.messages import LinkMessage, LinkState, Message, PoseMessage, StatusMessage, ToolReport
from nav.runtime.slots import Batch
from nav.runtime.snapshot import NavigationSnapshot

MS = 1_000_000
EYE = "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]"
ROOM = f"""
[[sources]]
name = "slicer"
tools = [{{ device = "NeedleToReference", transform = "NeedleToReference", hold_last = true }}]
[[calibrations]]
name = "NeedleTipToNeedle"
matrix = {EYE}
[[calibrations]]
name = "ReferenceToRas"
matrix = {EYE}
"""


def test_the_needle_stays_while_the_link_lives_and_goes_with_it() -> None:
    core = NavigationCore(parse_toml(ROOM, RoomConfig, "test"), CaseEssentials("CASE-1"))
    number = 0

    def tick(now_ms: int, *messages: Message) -> NavigationSnapshot:
        nonlocal number
        number += len(messages)
        events = [SetPlan((0.0, 0.0, 50.0), (0.0, 0.0, -50.0)), StartGuidance()] if now_ms == 0 else []
        return core.tick(Batch(messages, (), {"slicer": number}), list(events), now_ms * MS)

    def at(now_ms: int) -> tuple[str, int, int, str, int]:
        return "slicer", number, now_ms * MS, "NeedleToReference", now_ms * MS + 10**18

    report = ToolReport("NeedleToReference", PoseStatus.OK, np.eye(4))
    tick(0, LinkMessage("slicer", 0, 0, "", None, state=LinkState.CONNECTED), PoseMessage(*at(0), tools=(report,)))
    for now_ms in range(250, 10_000, 250):
        tick(now_ms, StatusMessage("slicer", number, now_ms * MS, "", None))
        between = tick(now_ms + 240)
        assert between.guidance is not None, between.gate
        assert needle_freshness(between, between.now_ns + 9 * MS).state is not Freshness.LOST
        assert {r.code for r in between.gate.reasons} & {"stream_stale:NeedleToReference", "latency"} == set()
    silent = tick(9_750 + 901)
    assert silent.guidance is None
    assert silent.needle.pose is None
