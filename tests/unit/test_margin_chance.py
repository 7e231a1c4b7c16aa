"""Chance of a margin of 5 mm: closed forms for balls, correlation, a plain Monte Carlo, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.transform import Rotation
from tumour_phantoms import CENTRE, ball, zone

from nav.ablation.margin import compute_margin, surface_margins_mm
from nav.ablation.margin_chance import (
    ChanceSamples,
    UncertainZone,
    margin_chance,
    margin_with_chance,
    point_chances,
    prepare_chance,
)
from nav.ablation.needle_zone import NeedleShape, shape_of_distance
from nav.ablation.prediction import Band, box_zone
from nav.ablation.sources import NeedleGrid
from nav.ablation.tumour import TumourModel
from nav.ablation.vessel_cut import cut_zone, vessel_walls
from nav.ablation.zone import NeedleZone, ZoneUnion
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

F64 = NDArray[np.float64]
TEN = TumourModel.from_mask(ball(10.0, (1.0, 1.0, 1.0)))


def pose(tip: F64) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, 3] = tip
    return Rigid.from_matrix(matrix, "TipToRas")


def sphere_samples(radius: float, points: int = 600) -> ChanceSamples:
    """An exact sphere about `CENTRE` whose surface is known."""
    z = 1.0 - (2.0 * np.arange(points) + 1.0) / points
    turn = np.arange(points) * (math.pi * (3.0 - math.sqrt(5.0)))
    on = np.stack([np.sqrt(1.0 - z * z) * np.cos(turn), np.sqrt(1.0 - z * z) * np.sin(turn), z], axis=1)
    return replace(
        prepare_chance(TEN), points_ras=CENTRE + radius * on, voxel_axes_mm=np.zeros((3, 3)), patch_sigma_mm=0.0
    )


def ball_shape(radius: float, centre_z: float = 0.0) -> NeedleShape:
    grid = NeedleGrid(-40.0, 1.0, 81, 36)
    return shape_of_distance(grid, radius - np.hypot(grid.z_mm[:, None] - centre_z, grid.r_mm[None]))


def band_of(shape: NeedleShape, *sigmas: float) -> Band:
    modes = np.stack([np.full(shape.distance_mm.shape, s) for s in sigmas])
    return Band(shape, shape, np.sqrt((modes**2).sum(axis=0)), modes)


def shift(sigma: float) -> F64:
    return np.diag([sigma**2] * 3 + [0.0] * 3)


@pytest.mark.parametrize(("radius", "sigma"), [(16.5, 1.0), (17.0, 1.0), (17.0, 2.0), (19.0, 1.5)])
def test_concentric_balls_with_an_uncertain_tip(radius: float, sigma: float) -> None:
    """The margin falls by the length of the shift, whatever its direction: a Maxwell distribution."""
    one = UncertainZone(zone(CENTRE, radius, radius), pose(CENTRE), shift(sigma))
    chance = margin_chance(sphere_samples(10.0), [one], CENTRE + np.array([10.0, 0.0, 0.0]))
    free = radius - 10.0
    # Alike in all directions, this is the hardest case for few draws.
    assert chance.p_ge5 == pytest.approx(stats.chi(3).cdf((free - 5.0) / sigma), abs=0.045)
    assert chance.sigma_mm == pytest.approx(stats.chi(3).std() * sigma, rel=0.13)
    assert chance.at_least_mm == pytest.approx(free - stats.chi(3).ppf(0.95) * sigma, abs=0.25 * sigma)
    # One point alone has it far more often: its chance is no stand-in for that of the surface.
    # (A shift across its direction costs s² / 20, on average sigma² / 10.)
    assert chance.p_ge5_worst == pytest.approx(stats.norm.cdf((free - 5.0 - 0.1 * sigma**2) / sigma), abs=0.02)
    assert chance.of_chart


def test_a_turn_moves_the_zone_by_its_arm() -> None:
    tip, sigma = CENTRE + np.array([0.0, 0.0, 30.0]), math.radians(2.0)
    turn = UncertainZone(zone(CENTRE, 17.0, 17.0), pose(tip), np.diag([0.0] * 3 + [sigma**2] * 3))
    across = UncertainZone(zone(CENTRE, 17.0, 17.0), pose(tip), np.diag([(30.0 * sigma) ** 2] * 2 + [0.0] * 4))
    worst = CENTRE + np.array([10.0, 0.0, 0.0])
    one, other = (margin_chance(sphere_samples(10.0), [u], worst) for u in (turn, across))
    assert one.p_ge5 == pytest.approx(1.0 - math.exp(-0.5 * (2.0 / (30.0 * sigma)) ** 2), abs=0.03)
    assert one.p_ge5 == pytest.approx(other.p_ge5, abs=0.02)
    assert one.sigma_mm == pytest.approx(other.sigma_mm, rel=0.05)


def test_what_moves_the_whole_zone_is_no_worse_for_the_surface_than_for_a_point() -> None:
    """Perfusion and power are common to all points; of the two, the parts add as independent errors."""
    shape = ball_shape(17.0)
    one = UncertainZone(
        NeedleZone(pose(CENTRE), shape, "", 0.0, 0.0, "", ""), pose(CENTRE), None, band_of(shape, 1.2, -1.6)
    )
    chance = margin_chance(sphere_samples(10.0), [one], CENTRE + np.array([10.0, 0.0, 0.0]))
    assert chance.p_ge5 == pytest.approx(stats.norm.cdf(2.0 / 2.0), abs=0.02)
    assert chance.p_ge5_worst == pytest.approx(chance.p_ge5, abs=0.01)
    assert chance.sigma_mm == pytest.approx(2.0, rel=0.03)
    assert chance.at_least_mm == pytest.approx(7.0 - 1.645 * 2.0, abs=0.15)
    assert not chance.of_chart
    assert "perfusion" in chance.basis
    on = sphere_samples(10.0)
    np.testing.assert_allclose(point_chances(on.points_ras, on, [one]), stats.norm.cdf(1.0), atol=0.02)


def wall_beside() -> Volume:
    n = 81
    matrix = np.eye(4)
    matrix[:3, 3] = CENTRE - 40.0
    x = np.arange(n) - 40.0
    disc = np.hypot(x[:, None], x[None] - 15.0) <= 2.5
    return Volume.of(np.broadcast_to(disc, (n, n, n)).astype(np.uint8), matrix)


@pytest.mark.parametrize("beside_a_vessel", [False, True])
def test_a_plain_monte_carlo_agrees(beside_a_vessel: bool) -> None:
    """Exact rotations, every surface point, the zone placed anew (and drawn in anew) at each drawn pose."""
    model = TumourModel.from_mask(ball(7.0 if beside_a_vessel else 9.0, (0.8, 0.8, 2.5)))
    shape, band = ball_shape(17.0, -4.0), band_of(ball_shape(17.0, -4.0), 1.0)
    root = np.diag([1.0, 0.6, 1.4, 0.03, 0.03, 0.03])
    root[0, 4] = -0.8  # tip and angle go together, as behind a lever
    covariance = root @ root.T
    tip = CENTRE + np.array([0.6, -0.4, 5.0])
    walls = vessel_walls(wall_beside())

    def placed(at: Rigid) -> NeedleZone:
        free = NeedleZone(at, shape, "", 0.0, 0.0, "", "")
        return cut_zone(free, walls, "microwave") if beside_a_vessel else free

    one = UncertainZone(placed(pose(tip)), pose(tip), covariance, band)
    got = margin_with_chance(model, replace(prepare_chance(model), voxel_axes_mm=np.zeros((3, 3))), [one])
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(1500):
        error = root @ rng.normal(size=6)
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(error[3:]).as_matrix()
        matrix[:3, 3] = tip + error[:3]
        margins = surface_margins_mm(model.surface_points, placed(Rigid.from_matrix(matrix, "TipToRas")))
        drawn.append(float(margins.min()) + rng.normal())
    chance = got.chance
    assert chance is not None
    share = float(np.mean(np.array(drawn) >= 5.0))
    assert 0.15 < share < 0.85
    assert chance.p_ge5 == pytest.approx(share, abs=0.05)
    assert chance.sigma_mm == pytest.approx(float(np.std(drawn)), rel=0.08)
    assert chance.at_least_mm == pytest.approx(float(np.quantile(drawn, 0.05)), abs=0.35)
    assert got.sigma_mm == chance.sigma_mm
    assert got.min_margin_mm == compute_margin(model, one.zone).min_margin_mm


def test_a_zone_in_a_box_moves_with_its_needle() -> None:
    """Tier 2 with the band of tier 1: the same ball has the same chance."""
    shape, at = ball_shape(17.0), pose(CENTRE)
    needle = NeedleZone(at, shape, "", 0.0, 0.0, "", "")
    matrix = np.eye(4)
    matrix[:3, 3] = CENTRE - 22.0
    grid = Volume.of(np.zeros((45, 45, 45), np.float32), matrix)
    level = 17.0 - np.linalg.norm(grid.voxels_ras() - CENTRE, axis=1)
    box = box_zone(Volume.of(level.reshape(45, 45, 45).astype(np.float32), matrix), at.rotation[:, 2], "", "")
    model = TumourModel.from_mask(ball(8.0, (1.5, 1.5, 1.5)))
    samples = prepare_chance(model, points=100)
    one, two = (
        margin_with_chance(model, samples, [UncertainZone(z, at, shift(2.5), band_of(shape, 1.0))]).chance
        for z in (needle, box)
    )
    assert one is not None
    assert two is not None
    assert 0.2 < one.p_ge5 < 0.8
    assert two.p_ge5 == pytest.approx(one.p_ge5, abs=0.03)
    assert two.sigma_mm == pytest.approx(one.sigma_mm, rel=0.05)


def test_zones_of_a_union_err_each_by_itself() -> None:
    """Each covers its half of the tumour: both must be where they should be."""
    apart = np.array([9.0, 0.0, 0.0])
    two = [UncertainZone(zone(CENTRE + s * apart, 18.0, 18.0), pose(CENTRE + s * apart), shift(1.5)) for s in (-1, 1)]
    samples = prepare_chance(TEN)
    together = margin_with_chance(TEN, samples, two).chance
    assert together is not None
    ends = [CENTRE + np.array([-10.0, 0.0, 0.0]), CENTRE + np.array([10.0, 0.0, 0.0])]
    rng = np.random.default_rng(3)
    drawn = [
        surface_margins_mm(
            TEN.surface_points,
            ZoneUnion(tuple(zone(CENTRE + s * apart + 1.5 * rng.normal(size=3), 18.0, 18.0) for s in (-1, 1))),
        ).min()
        for _ in range(600)
    ]
    assert together.p_ge5 == pytest.approx(float(np.mean(np.array(drawn) >= 5.0)), abs=0.06)
    assert point_chances(ends, samples, two).min() > together.p_ge5


def test_the_same_pose_has_the_same_chance_and_far_or_empty_zones_have_none() -> None:
    samples = prepare_chance(TEN)
    assert samples.draws.tobytes() == prepare_chance(TEN).draws.tobytes()
    far = UncertainZone(zone(CENTRE + 60.0, 17.0, 17.0), pose(CENTRE), shift(1.0))
    assert margin_chance(samples, [far], CENTRE).p_ge5 == 0.0
    nothing = replace(
        ball_shape(17.0), distance_mm=np.full((81, 36), -np.inf), outline_mm=np.empty((0, 2)), volume_ml=0.0
    )
    empty = UncertainZone(
        NeedleZone(pose(CENTRE), nothing, "", 0.0, 0.0, "", ""), pose(CENTRE), shift(1.0), band_of(nothing, 1.0)
    )
    chance = margin_chance(samples, [empty], CENTRE)
    assert (chance.p_ge5, chance.p_ge5_worst, chance.at_least_mm) == (0.0, 0.0, -math.inf)
    sure = replace(samples, voxel_axes_mm=np.zeros((3, 3)), patch_sigma_mm=0.0)
    exact = UncertainZone(zone(CENTRE, 17.0, 17.0), pose(CENTRE))
    assert margin_chance(sure, [exact], CENTRE + np.array([10.0, 0.0, 0.0])).p_ge5 == 1.0


def test_what_cannot_be_drawn_is_refused() -> None:
    samples, shape = prepare_chance(TEN), ball_shape(17.0)
    computed = NeedleZone(pose(CENTRE), shape, "", 0.0, 0.0, "", "")
    with pytest.raises(ValueError, match="needs its band"):
        margin_chance(samples, [UncertainZone(computed, pose(CENTRE))], CENTRE)
    with pytest.raises(ValueError, match="a chart has no band"):
        margin_chance(
            samples, [UncertainZone(zone(CENTRE, 17.0, 17.0), pose(CENTRE), None, band_of(shape, 1.0))], CENTRE
        )
    with pytest.raises(ValueError, match="no zone"):
        margin_with_chance(TEN, samples, [])
    for wrong, words in (
        (np.eye(3), r"\(6, 6\)"),
        (-np.eye(6), "eigenvalue is -1"),
        (np.full((6, 6), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            margin_chance(samples, [UncertainZone(zone(CENTRE, 17.0, 17.0), pose(CENTRE), wrong)], CENTRE)
    with pytest.raises(ValueError, match="power of two"):
        prepare_chance(TEN, draws=100)
