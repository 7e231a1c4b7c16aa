"""Zones computed beside the live thread: taken over only while they are wanted, kept in a recording bit for bit."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from nav.ablation.margin import surface_margins_mm
from nav.ablation.vessel_cut import VesselWalls, vessel_walls
from nav.ablation.zone import BoxZone, EllipsoidZone, NeedleZone, ZoneUnion
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.runtime.predicted_zones import (
    BoxPrediction,
    NeedlePrediction,
    Prediction,
    ZoneRequest,
    from_bytes,
    prediction_key,
    to_bytes,
)
from nav.runtime.zone_state import STILL_NS, ZoneState
from nav.runtime.zone_worker import ZoneWorker, compute_zone

S = 1_000_000_000
NEAR = ZoneRequest(1, "emprint", 75.0, 150.0, "liver")


def needle(*tip: float, tilt_deg: float = 0.0) -> Rigid:
    matrix = np.eye(4)
    c, s = np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))
    matrix[:3, :3] = [[1, 0, 0], [0, c, -s], [0, s, c]]
    matrix[:3, 3] = tip
    return Rigid.from_matrix(matrix, "NeedleTipToRas")


def vessel() -> Volume:
    """A vessel of 8 mm along R, 12 mm to the front of the origin's needle."""
    matrix = np.eye(4)
    matrix[:3, 3] = (-40.0, 0.0, -40.0)
    k, j, _ = np.indices((81, 41, 81))
    return Volume.of(((k - 30.0) ** 2 + (j - 12.0) ** 2 <= 16.0).astype(np.uint8), matrix)


@pytest.fixture(scope="module")
def near() -> NeedlePrediction:
    found = compute_zone(NEAR, None)
    assert isinstance(found, NeedlePrediction)
    return found


@pytest.fixture(scope="module")
def box() -> BoxPrediction:
    request = replace(NEAR, tier=2, case=1, tip_ras=(0.0, 0.0, 0.0), axis_ras=(0.0, 0.0, 1.0))
    found = compute_zone(request, vessel())
    assert isinstance(found, BoxPrediction)
    return found


WALLS = vessel_walls(vessel())


def chosen(walls: VesselWalls | None = WALLS) -> ZoneState:
    state = ZoneState(NEAR.applicator, NEAR.power_w, NEAR.time_s, NEAR.tissue)
    state.change_case(1, walls)
    return state


def zone_at(state: ZoneState, pose: Rigid, now_ns: int = 0) -> EllipsoidZone | NeedleZone | BoxZone:
    placed = state.at(pose, now_ns)
    assert placed is not None
    return placed.zone


def test_the_chart_stands_until_the_computed_zone_is_there(near: NeedlePrediction) -> None:
    state = chosen()
    assert isinstance(zone_at(state, needle(0.0, 0.0, 0.0)), EllipsoidZone)
    assert state.request == NEAR
    assert state.take(near)
    assert state.request is None
    placed = state.at(needle(5.0, 0.0, 0.0), 0)
    assert placed is not None
    assert isinstance(placed.zone, NeedleZone)
    assert placed.inner is not None
    assert placed.outer is not None
    assert placed.inner.short_mm < placed.zone.short_mm < placed.outer.short_mm


def test_what_answers_another_request_is_dropped(near: NeedlePrediction, box: BoxPrediction) -> None:
    state = chosen()
    assert not state.take(box)
    state.choose("emprint", 100.0, 150.0, "liver")
    assert not state.take(near)
    assert isinstance(zone_at(state, needle(0.0, 0.0, 0.0)), EllipsoidZone)
    state.choose("emprint", 75.0, 150.0, "")
    assert state.request is None


def test_tier_2_is_wanted_where_the_needle_stays_and_goes_when_it_leaves(
    near: NeedlePrediction, box: BoxPrediction
) -> None:
    state = chosen()
    state.take(near)
    state.at(needle(0.0, 0.0, 0.0), 0)
    state.at(needle(0.5, 0.0, 0.0), STILL_NS - 1)
    assert state.request is None
    state.at(needle(0.5, 0.0, 0.0), STILL_NS)
    assert state.request == box.request
    assert state.take(box)
    placed = state.at(needle(0.0, 1.0, 0.0), 2 * S)
    assert placed is not None
    assert placed.zone is box.zone
    assert placed.off is not None
    np.testing.assert_allclose(placed.off, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], atol=1e-12)
    assert state.request is None
    assert isinstance(zone_at(state, needle(0.0, 2.0, 0.0), 3 * S), NeedleZone)
    # Back again: a new stay counts, the old zone does not come back by itself.
    assert isinstance(zone_at(state, needle(0.0, 0.0, 0.0), 4 * S), NeedleZone)
    assert isinstance(zone_at(state, needle(0.0, 0.0, 0.0, tilt_deg=3.0), 4 * S), NeedleZone)


def test_tier_2_is_not_wanted_on_the_way_without_vessels_or_after_a_change_of_case(near: NeedlePrediction) -> None:
    for state, worthwhile in ((chosen(None), True), (chosen(), False)):
        state.take(near)
        for now_ns in (0, 5 * S):
            state.at(needle(0.0, 0.0, 0.0), now_ns, worthwhile=worthwhile)
        assert state.request is None
    state = chosen()
    state.take(near)
    for now_ns in (0, 5 * S):
        state.at(needle(0.0, 0.0, 0.0), now_ns)
    assert state.request is not None
    state.change_case(2, WALLS)
    assert state.request is None


def test_a_vessel_draws_the_zone_in_on_its_side_only(near: NeedlePrediction, box: BoxPrediction) -> None:
    height = near.growth.whole.centre_z_mm
    beside = np.array([[0.0, 10.0, height], [0.0, -10.0, height]])
    alone = zone_at_origin(near)
    state = chosen()
    state.take(near)
    ruled = zone_at(state, needle(0.0, 0.0, 0.0))
    for zone in (box.zone, ruled):
        towards, away = surface_margins_mm(beside, zone) - surface_margins_mm(beside, alone)
        assert towards < -1.0
        assert abs(away) < 0.6


def zone_at_origin(near: NeedlePrediction) -> NeedleZone:
    zone = zone_at(chosen_alone(near), needle(0.0, 0.0, 0.0))
    assert isinstance(zone, NeedleZone)
    assert zone.cut is None
    return zone


def test_a_running_ablation_grows_its_zone_and_its_timer_needs_no_needle(near: NeedlePrediction) -> None:
    state = chosen()
    state.take(near)
    assert state.timer(0) is None
    assert "none is running" in state.stop(0)
    assert state.start(10 * S) == ""
    assert "one is running" in state.start(11 * S)
    assert "is running" in state.choose("emprint", 100.0, 600.0, "liver")
    widths = []
    for at_s in (10.5, 20.0, 60.0, 110.0, 160.0, 400.0):
        placed = state.at(needle(0.0, 0.0, 0.0), round(at_s * S))
        assert placed is not None
        widths.append(0.0 if placed.grown is None else placed.grown.short_mm)
    assert widths[0] == 0.0
    assert (np.diff(widths)[:-1] > 0.0).all()
    assert widths[-2] == widths[-1] == near.growth.whole.short_mm
    timer = state.timer(160 * S)
    assert timer is not None
    assert (timer.elapsed_s, timer.time_s, timer.running) == (150.0, 150.0, True)
    assert "not seen" in state.stop(410 * S)
    ended = state.timer(500 * S)
    assert ended is not None
    assert (ended.elapsed_s, ended.running) == (400.0, False)


def test_what_was_made_stays_where_it_was_and_counts_with_the_next(near: NeedlePrediction) -> None:
    state = chosen(None)
    state.take(near)
    pose = needle(0.0, 0.0, 0.0)
    state.start(1 * S)
    state.at(pose, 100 * S)
    assert state.stop(101 * S) == ""
    (made,) = state.made
    whole = zone_at(chosen_alone(near), pose)
    assert made.zone.short_mm < whole.short_mm
    assert made.ras_from_tip is pose
    pulled = state.at(needle(0.0, 0.0, -20.0), 200 * S)
    assert pulled is not None
    assert isinstance(pulled.zone, ZoneUnion)
    assert pulled.grown is None
    at = np.array([[0.0, 0.0, made.zone.centre_ras[2]], [0.0, 0.0, made.zone.centre_ras[2] - 20.0]])
    assert (surface_margins_mm(at, pulled.zone) > 5.0).all()
    for now_ns in (300 * S, 400 * S):
        state.at(needle(0.0, 0.0, -20.0), now_ns)
    assert state.request is None  # no tier 2 after an ablation
    state.start(500 * S)
    state.at(pose, 500 * S + S // 10)
    assert "nothing is certain" in state.stop(500 * S + S // 5)
    assert "1 ablation(s) discarded" in state.discard()
    assert isinstance(zone_at(state, pose, 600 * S), NeedleZone)


def chosen_alone(near: NeedlePrediction) -> ZoneState:
    state = chosen(None)
    state.take(near)
    return state


def test_of_a_chart_only_what_it_holds_counts_as_made() -> None:
    state = ZoneState("emprint", 75.0, 300.0, "")
    for seconds, kept in ((60.0, 0), (200.0, 1), (900.0, 2)):
        state.start(1 * S)
        state.at(needle(0.0, 0.0, 0.0), round(seconds * S))
        state.stop(round(seconds * S))
        assert len(state.made) == kept
    assert isinstance(state.made[1].zone, EllipsoidZone)
    assert state.made[1].zone.time_s == 300.0


def test_a_device_whose_zone_lies_nobody_knows_where_says_so() -> None:
    state = ZoneState("visica2_liver", 1.0, 240.0, "")
    assert state.setting is not None
    assert state.setting.place_assumed
    assert "assumed to end at the tip" in state.choose("visica2_liver", 1.0, 240.0, "liver")
    assert state.text == "Visica2, liver 1 cm 240 s"


def test_growth_is_that_of_a_heating_ended_then(near: NeedlePrediction) -> None:
    half = compute_zone(replace(NEAR, time_s=150.0), None)
    assert isinstance(half, NeedlePrediction)
    times = near.growth.times_s
    assert times[-1] == 150.0
    between = near.growth.at(0.5 * (times[10] + times[11]))
    assert between is not None
    assert near.growth.shapes[10].short_mm < between.short_mm < near.growth.shapes[11].short_mm
    assert near.growth.at(0.5 * times[0]) is None


@pytest.mark.parametrize("which", ["near", "box"])
def test_a_recording_keeps_a_zone_bit_for_bit(which: str, request: pytest.FixtureRequest) -> None:
    made: Prediction = request.getfixturevalue(which)
    again = from_bytes(to_bytes(made))
    assert again.request == made.request
    assert prediction_key(again) == prediction_key(made)
    points = np.random.default_rng(1).uniform(-25.0, 25.0, (500, 3))
    zones = []
    for prediction in (made, again):
        if isinstance(prediction, BoxPrediction):
            zones.append(prediction.zone)
        else:
            state = chosen()
            state.take(prediction)
            zones.append(zone_at(state, needle(1.0, 2.0, 3.0)))
            assert prediction.band is not None
    np.testing.assert_array_equal(surface_margins_mm(points, zones[0]), surface_margins_mm(points, zones[1]))
    assert to_bytes(again) == to_bytes(made)


def test_the_process_computes_what_is_wanted_last_and_its_death_is_told(near: NeedlePrediction) -> None:
    done: list[Prediction] = []
    faults: list[str] = []
    arrived, told = threading.Event(), threading.Event()
    worker = ZoneWorker(lambda p: (done.append(p), arrived.set())[0], lambda text: (faults.append(text), told.set())[0])
    worker.start()
    try:
        worker.want(replace(NEAR, applicator="no-such-device"))
        assert told.wait(120.0)
        assert "no-such-device" in faults[0]
        told.clear()
        worker.want(replace(NEAR, power_w=100.0))
        worker.want(NEAR)
        assert arrived.wait(120.0)
        assert [p.request for p in done] == [NEAR]
        assert prediction_key(done[0]) == prediction_key(near)
        worker._process.kill()
        assert told.wait(30.0)
        assert "has ended" in faults[1]
    finally:
        worker.stop()
    assert worker.progress == ""
