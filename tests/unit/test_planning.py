"""Access paths and placement: nothing forbidden is returned, nothing is silent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.ablation.applicators import ChartRangeError, load_applicator
from nav.ablation.tumour import TumourModel
from nav.geometry.volume import Volume
from nav.planning.anatomy import Avoid, build_anatomy, skin_points, without_thin_parts
from nav.planning.grid import Grid, PlanningError
from nav.planning.paths import PathLimits, check_paths
from nav.planning.placement import Placements, choose_cover, sample_errors
from nav.planning.plan import Entries, find_paths, place
from nav.planning.ranking import pareto, rate, score
from nav.planning.settings import load_settings
from nav.planning.zones import chart_zones
from tests.unit.planning_phantom import ORGAN, TUMOUR, ball, box, gap_to_boxes, grid, lookup

F64 = NDArray[np.float64]


def silent(share: float, text: str) -> None:
    assert 0.0 <= share <= 1.0
    assert text


FINE = grid((1.2, 1.2, 2.0), 60.0)
ORGAN_MASK = ball(FINE, *ORGAN)
TUMOUR_MASK = ball(FINE, *TUMOUR)
RIB = box(FINE, (38.0, -60.0, -6.0), (44.0, 60.0, 6.0))
#: On a grid of its own, askew.
VESSEL = box(
    grid((1.5, 1.5, 1.5), 45.0, Rotation.from_euler("z", 20, degrees=True).as_matrix()), (-60, -14, -60), (60, -9, 60)
)
AVOID = [Avoid("rib", RIB, 2.0), Avoid("vessel", VESSEL, 3.0)]
LIMITS = PathLimits(needle_length_mm=90.0)


def shell(count: int, radius: float = 50.0) -> F64:
    rng = np.random.default_rng(0)
    p = rng.normal(size=(count, 3))
    return np.asarray(radius * p / np.linalg.norm(p, axis=1)[:, None])


@pytest.fixture(scope="module")
def anatomy() -> Any:
    return build_anatomy(FINE, TUMOUR_MASK, [ORGAN_MASK], AVOID, [[-59.0, -59, -59], [59.0, 59, 59]])


def test_no_feasible_path_breaks_a_constraint(anatomy: Any) -> None:
    entries = shell(3000)
    tips = TUMOUR[0] + np.random.default_rng(1).uniform(-4, 4, (3000, 3))
    checks = check_paths(anatomy, entries, tips, LIMITS)
    feasible = np.flatnonzero(checks.feasible)
    assert 300 < len(feasible) < 2700
    for name in ("rib", "vessel", "capsule_angle", "parenchyma", "stays_in_organ"):
        assert name in checks.counts
    for n in feasible[:40]:
        length = np.linalg.norm(tips[n] - entries[n])
        points = entries[n] + np.linspace(0, 1, int(length / 0.3))[:, None] * (tips[n] - entries[n])
        assert gap_to_boxes(RIB, points).min() >= 2.0
        assert gap_to_boxes(VESSEL, points).min() >= 3.0
        organ, tumour = lookup(ORGAN_MASK, points), lookup(TUMOUR_MASK, points)
        first = int(np.argmax(organ))
        assert first > 0
        assert organ[first:].all()
        assert (int(np.argmax(tumour)) - first) * 0.3 >= LIMITS.parenchyma_mm
        normal = points[first] / np.linalg.norm(points[first])
        steep = np.degrees(np.arcsin(-normal @ (tips[n] - entries[n]) / length))
        assert steep >= LIMITS.capsule_angle_deg
        assert checks.capsule_angle_deg[n] == pytest.approx(steep, abs=4.0)
    # And it is not refused what is far from everything: paths that keep 3 mm more than asked.
    for n in np.flatnonzero(checks.violated[:, :2].any(axis=1))[:30]:
        points = entries[n] + np.linspace(0, 1, 120)[:, None] * (tips[n] - entries[n])
        assert gap_to_boxes(RIB, points).min() < 5.0 or gap_to_boxes(VESSEL, points).min() < 6.0


@pytest.mark.parametrize(
    ("entry", "tip", "limits", "violated"),
    [
        ((50.0, 4, 2), (6.0, 4, 2), LIMITS, "rib"),
        ((6.0, -50, 2), (6.0, 4, 2), LIMITS, "vessel"),
        ((6.0, 55, 2), (6.0, 4, 2), replace(LIMITS, needle_length_mm=50.0), "length"),
        ((6.0, 55, 2), (6.0, 4, 2), replace(LIMITS, parenchyma_mm=40.0), "parenchyma"),
        ((-55.0, 38, 2), (6.0, 30, 2), replace(LIMITS, capsule_angle_deg=45.0), "capsule_angle"),
        ((6.0, 4, 55), (6.0, 4, 2), replace(LIMITS, out_of_plane_deg=45.0), "out_of_plane"),
        ((6.0, 4, 55), (6.0, 4, -45), LIMITS, "stays_in_organ"),
        ((-55.0, 50, 2), (55.0, 50, 2), LIMITS, "reaches_organ"),
        ((6.0, 4, 2), (6.0, 4, 10), LIMITS, "reaches_organ"),
        ((6.0, 55, 2), (6.0, 4, 2), replace(LIMITS, up_ras=(0.0, -1.0, 0.0)), "from_below"),
    ],
)
def test_each_constraint_is_named(anatomy: Any, entry: Any, tip: Any, limits: PathLimits, violated: str) -> None:
    checks = check_paths(anatomy, [entry], [tip], limits)
    assert checks.counts[violated] == 1


def test_pose_angle(anatomy: Any) -> None:
    limits = replace(LIMITS, pose_angle_deg=10.0)
    entry, tip = [[6.0, 55, 2]] * 3, [[6.0, 4, 2]] * 3
    axes = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [np.nan] * 3]
    assert check_paths(anatomy, entry, tip, limits, axes).violated[:, -1].tolist() == [False, True, False]


def test_vessel_through_the_target_is_said_and_kept_from_outside_it() -> None:
    vessel = box(FINE, (-60.0, 2.0, 0.0), (60.0, 6.0, 4.0))  # along x, through the tumour
    anatomy = build_anatomy(
        FINE, TUMOUR_MASK, [ORGAN_MASK], [Avoid("vein", vessel, 3.0)], [[-59.0, -59, -59], [59.0, 59, 59]]
    )
    assert "vein passes through the target" in anatomy.warnings[0]
    checks = check_paths(anatomy, [[6.0, 55, 2], [-55.0, 4, 2]], [[6.0, 4, 2], [6.0, 4, 2]], LIMITS)
    assert checks.violated[:, 0].tolist() == [False, True]


def test_masks_that_cannot_be_planned_with_are_refused() -> None:
    empty = Volume.of(np.zeros_like(FINE.array), FINE.ras_from_index)
    ends = [[-59.0, -59, -59], [59.0, 59, 59]]
    for message, arguments in (
        ("target mask is empty", (FINE, empty, [ORGAN_MASK], [])),
        ("organ mask is empty", (FINE, TUMOUR_MASK, [empty], [])),
        ("rib: its mask is empty", (FINE, TUMOUR_MASK, [ORGAN_MASK], [Avoid("rib", empty, 2.0)])),
        ("0 % of the target lies in the organ", (FINE, ball(FINE, np.array([50.0, 0, 0]), 5.0), [ORGAN_MASK], [])),
        ("must have different names", (FINE, TUMOUR_MASK, [ORGAN_MASK], [AVOID[0], AVOID[0]])),
        ("safety distance 30 mm", (FINE, TUMOUR_MASK, [ORGAN_MASK], [Avoid("rib", RIB, 30.0)])),
    ):
        with pytest.raises(PlanningError, match=message):
            build_anatomy(*arguments, ends)


def test_masks_nest_whatever_way_their_axes_run() -> None:
    cells = Grid.over(FINE, [[-30.0, -30, -30], [30.0, 30, 30]])
    want, slack = cells.mark(TUMOUR_MASK)
    assert slack == 0.0
    array = np.asarray(TUMOUR_MASK.array)
    flipped = FINE.ras_from_index @ np.array(
        [[0, 0, -1, FINE.size[0] - 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float
    )
    other = Volume.of(np.ascontiguousarray(array.transpose(2, 1, 0)[::-1]), flipped)
    got, slack = cells.mark(other)
    assert slack == 0.0
    assert (got == want).all()
    outside, _ = cells.mark(other, outside=True)
    assert (outside | got).all()
    assert (outside & got).sum() < got.sum()


def test_thin_parts_are_left_out() -> None:
    trunk, twig = box(FINE, (-4.0, -4, -50), (4.0, 4, 50)), box(FINE, (5.0, -0.7, -1.0), (50.0, 0.7, 1.0))
    both = Volume.of(np.asarray(trunk.array) | np.asarray(twig.array), FINE.ras_from_index)
    kept = np.asarray(without_thin_parts(both, 4.0).array) > 0
    assert not (kept & (np.asarray(twig.array) > 0) & (FINE.voxels_ras()[:, 0].reshape(kept.shape) > 8.0)).any()
    assert (kept & (np.asarray(trunk.array) > 0)).sum() > 0.85 * np.asarray(trunk.array).sum()


def test_skin_is_the_body_and_not_the_table() -> None:
    air = grid((2.0, 2.0, 4.0), 70.0)
    p = air.voxels_ras()
    hu = np.where(np.hypot(p[:, 0], p[:, 1]) <= 50.0, 40, -1000)
    hu = np.where((np.abs(p[:, 1] + 60.0) < 3.0), 200, hu)
    hu = np.where(np.linalg.norm(p[:, :2], axis=1) < 15.0, -900, hu)  # a lung is inside
    points = skin_points(Volume.of(hu.reshape(air.array.shape).astype(np.int16), air.ras_from_index))
    radius = np.hypot(points[:, 0], points[:, 1])
    assert len(points) > 500
    assert radius.min() > 45.0
    assert radius.max() < 53.0
    with pytest.raises(PlanningError, match="no body found"):
        skin_points(Volume.of(np.full((5, 20, 20), -1000, np.int16), np.eye(4)))


@dataclass(frozen=True)
class Slab:
    """A zone that is no ellipsoid: a stretch of the axis, and distances from it."""

    along: tuple[float, float]
    across: tuple[float, float]
    offset_mm: float = 0.0
    radius_mm: float = 50.0

    def contains(self, along_mm: F64, across_mm: F64) -> NDArray[np.bool_]:
        return (
            (along_mm >= self.along[0])
            & (along_mm <= self.along[1])
            & (across_mm >= self.across[0])
            & (across_mm <= self.across[1])
        )

    def describe(self) -> dict[str, Any]:
        return {}


def placements(zones: tuple[Slab, ...], healthy: list[float]) -> Placements:
    n = len(zones)
    return Placements(
        zones, np.arange(n), np.arange(n), np.zeros((n, 3)), np.tile([1.0, 0, 0], (n, 1)), np.array(healthy)
    )


def test_exact_cover_needs_fewer_than_the_greedy_one() -> None:
    points = np.array([[x, y, 0.0] for y in (0.0, 10.0) for x in range(1, 8)])
    # Two rows do it; the greedy choice falls for the columns: 8, then 4, then 2 points.
    zones = (
        Slab((1, 7), (0, 1)),
        Slab((1, 7), (9, 11)),
        Slab((4, 7), (0, 11)),
        Slab((2, 3), (0, 11)),
        Slab((1, 1), (0, 11)),
    )
    cover = choose_cover(placements(zones, [5, 5, 1, 1, 1]), points, 1.0, 10, 10.0, 0, silent)
    assert (cover.method, sorted(cover.chosen)) == ("milp", [0, 1])
    assert (cover.greedy_applicators, cover.lower_bound, cover.coverage) == (3, 2, 1.0)
    # One that covers all is found by looking; the least harmful of two.
    whole = Slab((0, 9), (0, 20))
    one = choose_cover(placements((*zones, whole, whole), [5, 5, 1, 1, 1, 9, 8]), points, 1.0, 10, 10.0, 0, silent)
    assert (one.method, one.chosen.tolist()) == ("enumeration", [6])
    # What nothing reaches is said.
    short = choose_cover(placements(zones[:1], [5]), points, 1.0, 10, 10.0, 0, silent)
    assert (short.coverage, short.reachable) == (0.5, 0.5)


def test_placement_errors_are_seeded_and_matter() -> None:
    (zone,) = chart_zones(load_applicator("emprint"), 100.0, 600.0)
    chosen = Placements(
        (zone,),
        np.zeros(1, np.intp),
        np.zeros(1, np.intp),
        np.array([[zone.offset_mm, 0, 0]]),
        np.array([[1.0, 0, 0]]),
        np.zeros(1),
    )
    points = shell(400, 15.0)
    assert sample_errors(chosen, points, 0.0, 3, 1).tolist() == [1.0, 1.0, 1.0]
    one, two = (sample_errors(chosen, points, 3.0, 100, 1) for _ in range(2))
    assert (one == two).all()
    assert 0.05 < (one < 1.0).mean() < 1.0
    # By hand: within the shorter semi-axis less the radius nothing can be lost.
    errors = np.linalg.norm(np.random.default_rng(1).normal(0.0, 3.0, (100, 1, 3)), axis=2)[:, 0]
    assert (one[errors < 3.0] == 1.0).all()


def test_settings_outside_the_chart_are_refused() -> None:
    emprint = load_applicator("emprint")
    assert len(chart_zones(emprint)) == len(emprint.chart)
    assert {z.power_w for z in chart_zones(emprint, power_w=60.0)} == {60.0}
    for power, time, text in ((150.0, None, "power 150 W"), (None, 900.0, "time 900 s"), (75.0, 30.0, "time 30 s")):
        with pytest.raises(ChartRangeError, match=text):
            chart_zones(emprint, power, time)


def test_criteria_score_and_pareto(anatomy: Any) -> None:
    checks = check_paths(anatomy, [[6.0, 55, 2], [6.0, 4, 55.0]], [[6.0, 4, 2], [6.0, 4, 2]], LIMITS)
    zone = chart_zones(load_applicator("emprint"))[-1]
    line = TUMOUR[0] + np.linspace(-10, 10, 21)[:, None] * np.array([0.0, 1.0, 0.0])
    got = rate(checks, np.array([[10.0, 30.0], [1.0, 5.0]]), line, line, zone, 100.0)
    assert got["length"] == pytest.approx([0.49, 0.47])
    assert got["risk"] == pytest.approx([0.5, 0.05])
    assert got["out_of_plane"] == pytest.approx([1.0, 0.0])
    assert got["alignment"] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert ((got["coverage"] > 0.3) & (got["coverage"] <= 1.0)).all()
    weights = {"length": 1.0, "risk": 2.0}
    assert score(got, weights) == pytest.approx([0.49 * 0.25, 0.47 * 0.0025])
    three = {"a": np.array([1.0, 0.5, 0.5, 1.0]), "b": np.array([0.2, 0.9, 0.8, 0.2])}
    assert pareto(three, ["a", "b"], np.arange(4)).tolist() == [True, True, False, True]


def test_whole_plan_covers_and_says_when_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nav.planning.plan.CANDIDATES", 4000)
    monkeypatch.setattr("nav.planning.plan._PLACED_PATHS", 12)
    settings, emprint = load_settings(), load_applicator("emprint")
    model = TumourModel.from_mask(TUMOUR_MASK)
    entries = Entries.of(shell(400))
    zones = chart_zones(emprint, time_s=300.0)
    paths = find_paths(FINE, TUMOUR_MASK, [ORGAN_MASK], AVOID, entries, zones, LIMITS, settings, model)
    assert (np.diff(paths.scores) <= 0.0).all()
    placed = place(paths, zones, model, LIMITS, settings)
    assert len(placed.placements.zone) == 1
    assert placed.checks.feasible.all()
    assert placed.coverage >= 0.995
    assert placed.target_coverage == 1.0
    assert placed.reason == ""
    # The union's volume by hand: an ellipsoid inside the organ less the tumour.
    size = placed.placements.zone_list()[0].size  # type: ignore[attr-defined]
    volume = np.pi / 6.0 * size.long_mm * size.short_mm**2 / 1000.0 - model.volume_ml
    assert placed.healthy_ml == pytest.approx(volume, rel=0.03)
    # A margin that one small zone cannot cover from the single path there is.
    small = chart_zones(emprint, 45.0, 150.0)
    few = find_paths(
        FINE, TUMOUR_MASK, [ORGAN_MASK], AVOID, Entries.of([[6.0, 50.0, 2.0]]), small, LIMITS, settings, model
    )
    lacking = place(few, small, model, LIMITS, settings)
    assert lacking.coverage < 0.995
    assert "is wanted" in lacking.reason
    # Nothing feasible: said with counts, no ablation invented.
    shut = replace(LIMITS, parenchyma_mm=90.0)
    none = find_paths(FINE, TUMOUR_MASK, [ORGAN_MASK], AVOID, entries, zones, shut, settings, model)
    assert len(none.feasible) == 0
    assert none.checks.counts["parenchyma"] > 1000
    assert place(none, zones, model, shut, settings).reason == "no feasible path"
    with pytest.raises(PlanningError, match="no entry within the needle's length"):
        find_paths(
            FINE,
            TUMOUR_MASK,
            [ORGAN_MASK],
            AVOID,
            entries,
            zones,
            replace(LIMITS, needle_length_mm=20.0),
            settings,
            model,
        )
