"""No tool is shown as there longer than 250 ms after its last true pose, whatever its sender does instead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nav.config.load import parse_toml
from nav.config.room import RoomConfig
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseRefusal, PoseStatus
from nav.guidance.gate import GateInputs, evaluate_gate
from nav.guidance.numbers import GateState
from nav.runtime.messages import LinkMessage, LinkState, PoseMessage, StatusMessage, ToolReport
from nav.runtime.streams import StreamSet

MS = 1_000_000
S = 1_000_000_000
NAME = "NeedleToTracker"
LIMIT_NS = 250 * MS

#: What a sender may do for a while: (how, how many periods).
phases = st.lists(
    st.tuples(
        st.sampled_from(
            ["moves", "identity", "repeats", "silent", "missing", "old stamps", "same stamp", "scaled", "late"]
        ),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("hz", [20.0, 40.0, 60.0])
@given(phases=phases, seed=st.integers(0, 2**32 - 1))
@example(phases=[("old stamps", 1), ("late", 1), ("repeats", 30)], seed=0)
@settings(max_examples=40, deadline=None)
def test_no_number_survives_its_pose_by_more_than_250_ms(hz: float, phases: list[tuple[str, int]], seed: int) -> None:
    room = parse_toml(
        f"""
[[sources]]
name = "tracker"
tools = [{{ device = "{NAME}", transform = "{NAME}", nominal_hz = {hz} }}]
""",
        RoomConfig,
        "test",
    )
    graph = FrameGraph()
    streams = StreamSet(room, graph)
    streams.on_link(LinkMessage("tracker", 0, 0, "", None, state=LinkState.CONNECTED))
    rng = np.random.default_rng(seed)
    period = round(S / hz)
    now, true_ns, bits = S, 0, np.eye(4)
    stamp = S

    def shown(at_ns: int) -> bool:
        health = streams.health(at_ns)
        verdict = evaluate_gate(GateInputs(streams=health, required=frozenset({NAME})))
        blank = {r.code for r in verdict.reasons if r.level is GateState.BLANK and r.code.endswith(f":{NAME}")}
        try:
            newest = graph.newest_common_time("Tracker", "Needle")
            graph.lookup("Tracker", "Needle", newest)
        except PoseRefusal:
            return False
        return not blank and at_ns - newest <= LIMIT_NS

    # A tracker's noise is known after a few seconds of it.
    for how, periods in [("moves", 150), *phases]:
        for _ in range(periods):
            now += period
            matrix, status = bits, PoseStatus.OK
            if how in ("moves", "late"):
                bits = np.eye(4)
                bits[:3, 3] = np.array([100.0, -40.0, -900.0]) + rng.standard_normal(3)
                matrix = bits
                # Late data was true when it was measured.
                stamp = max(now - 400 * MS, stamp + 1) if how == "late" else now
                true_ns = max(true_ns, stamp)
            elif how == "identity":
                matrix, stamp = np.eye(4), now
            elif how == "repeats":
                stamp = now
            elif how == "missing":
                status, stamp = PoseStatus.MISSING, now
            elif how == "old stamps":
                stamp -= 10 * MS
            elif how == "scaled":
                matrix, stamp = np.diag([2.0, 2.0, 2.0, 1.0]), now
            if how == "silent":
                alive = StatusMessage("tracker", 0, now, "", None)
                streams.on_any(alive)
                streams.on_status(alive)
            else:
                report = ToolReport(NAME, status, matrix if status is PoseStatus.OK else None)
                message = PoseMessage("tracker", 0, now, NAME, stamp, tools=(report,))
                streams.on_any(message)
                streams.on_poses(message)
            for at_ns in (now, now + period // 2):
                if shown(at_ns):
                    assert at_ns - true_ns <= LIMIT_NS, (how, (at_ns - true_ns) / MS)
        if how == "moves" and periods >= hz:
            assert shown(now), streams.health(now)
