"""Properties of gate, guidance, margin, chart and registration that hold for any input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from nav.ablation.applicators import load_applicator
from nav.ablation.margin import point_margin_mm
from nav.ablation.zone import EllipsoidZone
from nav.geometry.rigid import Rigid
from nav.guidance.compute import bullseye_axes, compute_guidance
from nav.guidance.gate import GateInputs, evaluate_gate
from nav.guidance.health import StreamHealth
from nav.registration.error_distribution import error_share_within, radius_of_share
from nav.registration.landmarks import MIN_SPREAD_MM, point_covariance, register_landmarks

finite = st.floats(-200.0, 200.0)
points = st.tuples(finite, finite, finite).map(np.array)
rotations = st.integers(0, 2**31).map(lambda seed: Rotation.random(rng=np.random.default_rng(seed)))
states = st.sampled_from(["live", "stale", "lost", "link_lost", "waiting", "odd"])


def _stream(name: str, state: str) -> StreamHealth:
    return StreamHealth(name, "pose", state, 60.0, 60.0, 10.0, 1, 0, 0, 100.0, 250.0)


maybe = st.one_of(st.none(), st.floats(0.0, 10.0))
gate_inputs = st.builds(
    GateInputs,
    streams=st.lists(states, max_size=3).map(lambda s: tuple(_stream(f"s{i}", state) for i, state in enumerate(s))),
    required=st.sets(st.sampled_from(["s0", "s1", "s2"])).map(frozenset),
    needle_refusal=st.sampled_from(["", "tool_lost", "gap", "odd"]),
    needle_tool=st.sampled_from(["s0", "s1", "needle"]),
    registration_method=st.sampled_from(["", "landmarks", "file", "assumed"]),
    tre_at_target_mm=maybe,
    fre_mm=maybe,
    order_warning=st.sampled_from(["", "swapped"]),
    registration_age_min=st.floats(0.0, 200.0),
    tip_calibration=st.sampled_from(["", "calibrated", "nominal", "assumed"]),
    tip_rms_mm=maybe,
    latency_ms=st.one_of(st.none(), st.floats(0.0, 500.0)),
    respiration=st.sampled_from(["none", "declared_hold"]),
    breath_hold=st.sampled_from([None, True, False]),
    guidance_started=st.booleans(),
    target_set=st.booleans(),
    tumour_loaded=st.booleans(),
    zone_problem=st.sampled_from(["", "power"]),
    dead_threads=st.sampled_from([(), ("compute",)]),
    faults=st.sampled_from([(), ("recorder full",)]),
)

WORSENINGS = (
    lambda g: replace(g, streams=(*g.streams, _stream("more", "lost"))),
    lambda g: replace(g, streams=tuple(_stream(s.name, "link_lost") for s in g.streams)),
    lambda g: replace(g, required=g.required | {s.name for s in g.streams} | {"absent"}),
    lambda g: replace(g, needle_refusal=g.needle_refusal or "gap"),
    lambda g: replace(g, registration_method=""),
    lambda g: replace(g, order_warning="swapped"),
    lambda g: replace(g, tre_at_target_mm=(g.tre_at_target_mm or 0.0) + 5.0),
    lambda g: replace(g, fre_mm=(g.fre_mm or 0.0) + 5.0),
    lambda g: replace(g, registration_age_min=g.registration_age_min + 100.0),
    lambda g: replace(g, tip_calibration=""),
    lambda g: replace(g, tip_rms_mm=(g.tip_rms_mm or 0.0) + 5.0),
    lambda g: replace(g, latency_ms=(g.latency_ms or 0.0) + 100.1),
    lambda g: replace(g, respiration="declared_hold", breath_hold=False),
    lambda g: replace(g, guidance_started=False),
    lambda g: replace(g, target_set=False),
    lambda g: replace(g, tumour_loaded=False),
    lambda g: replace(g, zone_problem="power"),
    lambda g: replace(g, dead_threads=(*g.dead_threads, "recorder")),
    lambda g: replace(g, faults=(*g.faults, "disk")),
)


@settings(max_examples=150, deadline=None)
@given(gate_inputs)
def test_trouble_never_loosens_the_gate(inputs: GateInputs) -> None:
    before = evaluate_gate(inputs)
    for worsen in WORSENINGS:
        after = evaluate_gate(worsen(inputs))
        assert after.state.value >= before.state.value
        assert after.reasons


@settings(max_examples=100, deadline=None)
@given(gate_inputs)
def test_verdict_is_the_worst_of_its_reasons(inputs: GateInputs) -> None:
    verdict = evaluate_gate(inputs)
    assert verdict.state.value == max((r.level.value for r in verdict.reasons), default=0)
    codes = [r.code for r in verdict.reasons]
    assert len(set(codes)) == len(codes)
    assert all(r.text for r in verdict.reasons)


@settings(max_examples=100, deadline=None)
@given(points, points, points, rotations)
def test_guidance_is_a_right_angled_triangle_and_turns_with_the_patient(
    tip: np.ndarray, target: np.ndarray, entry: np.ndarray, turn: Rotation
) -> None:
    m = np.eye(4)
    m[:3, :3], m[:3, 3] = turn.as_matrix(), tip
    pose = Rigid.from_matrix(m, "NeedleTipToRas")
    entry_ras = entry if np.linalg.norm(target - entry) >= 1.0 else None
    g = compute_guidance(pose, target_ras=target, entry_ras=entry_ras)
    assert math.isclose(g.tip_to_target_mm, math.hypot(g.lateral_mm, g.depth_mm), abs_tol=1e-9)
    assert math.isclose(math.hypot(*g.tip_offset_mm), g.lateral_mm, abs_tol=1e-9)
    assert 0.0 <= g.angle_deg <= 180.0
    assert np.isfinite(g.hub_offset_mm).all()


@given(rotations)
def test_bullseye_axes_are_a_right_handed_view(turn: Rotation) -> None:
    d = turn.apply([0.0, 0.0, 1.0])
    right, up = bullseye_axes(d)
    frame = np.stack([right, up, -d])
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(frame) > 0.0


@settings(max_examples=200, deadline=None)
@given(points, points, st.floats(2.0, 40.0), st.floats(2.0, 40.0), rotations)
def test_margin_changes_no_faster_than_the_point_moves(
    p: np.ndarray, step: np.ndarray, a: float, b: float, turn: Rotation
) -> None:
    zone = EllipsoidZone(np.zeros(3), turn.apply([0.0, 0.0, 1.0]), a, b, 0, "", 0.0, 0.0, "", "")
    here, there = point_margin_mm(p, zone), point_margin_mm(p + 0.05 * step, zone)
    assert abs(here - there) <= 0.05 * float(np.linalg.norm(step)) + 1e-7
    assert here <= min(a, b) + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.floats(45.0, 100.0), st.floats(150.0, 600.0))
def test_chart_sizes_lie_between_their_neighbours(power: float, time: float) -> None:
    emprint = load_applicator("emprint")
    size = emprint.size(power, time)
    near = [
        r
        for r in emprint.chart
        if r.power_w in (_below(emprint.powers_w, power), _above(emprint.powers_w, power))
        and r.time_s in (_below((150, 240, 300, 420, 600), time), _above((150, 240, 300, 420, 600), time))
    ]
    for name in ("long_mm", "short_mm", "offset_mm"):
        values = [getattr(r, name) for r in near]
        assert min(values) - 1e-9 <= getattr(size, name) <= max(values) + 1e-9


def _below(values: tuple[float, ...], x: float) -> float:
    return max(v for v in values if v <= x)


def _above(values: tuple[float, ...], x: float) -> float:
    return min(v for v in values if v >= x)


def _off_a_line_mm(points: np.ndarray) -> float:
    """Rms extent of (n, 3) points along the second of their principal axes."""
    return float(np.linalg.svd(points - points.mean(axis=0), compute_uv=False)[1]) / math.sqrt(len(points))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), rotations, points, st.integers(4, 9))
def test_registration_does_not_depend_on_frame_or_order(
    seed: int, turn: Rotation, shift: np.ndarray, count: int
) -> None:
    """Residuals and predicted error belong to the landmarks, not to the axes they are measured in."""
    rng = np.random.default_rng(seed)
    fixed = rng.uniform(-80, 80, (count, 3))
    moving = fixed + rng.normal(scale=0.5, size=fixed.shape)
    # Landmarks near a line are refused, whatever the axes; that is tested elsewhere.
    assume(min(_off_a_line_mm(fixed), _off_a_line_mm(moving)) > 1.01 * MIN_SPREAD_MM)
    labels = [f"p{i}" for i in range(count)]
    plain = register_landmarks(fixed, moving, name="ReferenceToRas", labels=labels)
    order = rng.permutation(count)
    other = register_landmarks(
        turn.apply(fixed[order]) + shift,
        turn.apply(moving[order]) - shift,
        name="ReferenceToRas",
        labels=[labels[i] for i in order],
    )
    np.testing.assert_allclose(other.residuals_mm, plain.residuals_mm[order], atol=1e-8)
    target = np.array([10.0, 20.0, 30.0])
    there = turn.apply(target) + shift
    assert math.isclose(plain.tre_rms_at(target), other.tre_rms_at(there), rel_tol=1e-6)
    assert math.isclose(plain.radius95_at(target), other.radius95_at(there), rel_tol=1e-4)
    eigenvalues = np.linalg.eigvalsh(point_covariance(plain.covariance, target))
    assert eigenvalues.min() > 0.0


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(0.0, 9.0)] * 3), st.floats(0.1, 0.99), st.floats(2.0, 100.0))
def test_radius_holds_its_share_and_grows(axes: tuple[float, ...], share: float, dof: float) -> None:
    covariance = np.diag(axes)
    if max(axes) < 1e-6:
        return
    radius = radius_of_share(covariance, share, dof)
    assert math.isclose(error_share_within(radius, covariance, dof), share, abs_tol=2e-5)
    assert radius_of_share(covariance, share) <= radius + 1e-4 or share < 0.6
    assert radius_of_share(covariance + np.eye(3), share, dof) >= radius
