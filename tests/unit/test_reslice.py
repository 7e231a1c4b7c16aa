"""A bright voxel at a known place shows up at the expected pixel, whatever the volume's orientation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.volume import Volume
from nav.imaging.planes import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    PlaneAxes,
    lock_axis_for,
    needle_axes,
    pane_letters,
    pixel_from_ras,
    pixel_to_ras,
    plane_matrix,
    ras_to_pixel,
)
from nav.imaging.reslice import reslice_plane

SHAPE = (24, 30, 36)


def affine(kind: str) -> NDArray[np.float64]:
    m = np.eye(4)
    if kind == "ras":
        m[:3, :3] = np.diag([1.0, 1.0, 1.0])
    elif kind == "lps":
        m[:3, :3] = np.diag([-1.0, -1.0, 1.0])
    elif kind == "anisotropic":
        m[:3, :3] = np.diag([-0.6, -0.6, 2.5])
    elif kind == "oblique":
        m[:3, :3] = Rotation.from_euler("zyx", (25, -14, 33), degrees=True).as_matrix() * (0.9, 0.9, 1.4)
    else:  # a sagittal acquisition: i runs to posterior, j to inferior, k to the left
        m[:3, :3] = np.array([[0, 0, -2.0], [-1.0, 0, 0], [0, -1.0, 0]])
    m[:3, 3] = (-37.0, 21.0, 300.0)
    return m


KINDS = ("ras", "lps", "anisotropic", "oblique", "sagittal")
VIEWS = {
    "axial": AXIAL,
    "coronal": CORONAL,
    "sagittal": SAGITTAL,
    "needle": needle_axes((-0.7, -0.6, 0.3))[0],
    "eye": needle_axes((-0.7, -0.6, 0.3))[2],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", VIEWS)
def test_bright_voxel_appears_where_it_is(kind: str, view: str) -> None:
    array = np.full(SHAPE, -1000, np.int16)
    array[9, 17, 22] = 3000
    volume = Volume.of(array, affine(kind))
    spot = volume.to_ras((22, 17, 9))
    # The plane passes through the voxel; in the picture it stands off the middle by (+11, -6) mm, right and up.
    axes = VIEWS[view]
    centre = spot - 11.0 * axes.right + 6.0 * axes.up
    m = plane_matrix(axes, centre, 161, 121, 0.25)
    picture = reslice_plane(volume, m, 161, 121, 4000.0, 1000.0)
    y, x = np.unravel_index(int(np.argmax(picture)), picture.shape)
    assert (x, y) == (80 + 44, 60 + 24)
    assert np.allclose(pixel_to_ras(m, float(x), float(y)), spot)
    assert np.allclose(ras_to_pixel(pixel_from_ras(m), spot), (124, 84, 0))
    assert picture.max() == 255


@pytest.mark.parametrize("kind", KINDS)
def test_outside_is_distinguishable_from_air(kind: str) -> None:
    volume = Volume.of(np.full(SHAPE, -2000, np.int16), affine(kind))
    m = plane_matrix(AXIAL, volume.centre_ras(), 301, 301, 0.5)
    picture = reslice_plane(volume, m, 301, 301, 400.0, 40.0)
    assert picture[150, 150] == 1
    assert picture[0, 0] == 0
    points = np.array([pixel_to_ras(m, x, y) for x in range(0, 301, 10) for y in range(0, 301, 10)])
    index = volume.to_index(points)
    inside = ((index >= -0.5) & (index <= np.array(volume.size) - 0.5)).all(axis=1)
    grey = np.array([picture[y, x] for x in range(0, 301, 10) for y in range(0, 301, 10)])
    assert np.array_equal(grey == 1, inside)


def test_window_and_level() -> None:
    ramp = np.tile(np.arange(-200, 300, dtype=np.int16), (2, 2, 1))
    volume = Volume.of(ramp, np.eye(4))
    row = reslice_plane(volume, np.eye(4), 500, 1, 200.0, 50.0)[0]
    assert row[149] == 1  # -51 HU, below the window's lower end of -50
    assert row[150] == 1
    assert row[250] in (128, 127)  # 50 HU, the level
    assert row[350] == 255  # 150 HU
    assert (np.diff(row.astype(int)) >= 0).all()


def test_letters_of_radiological_display() -> None:
    assert pane_letters(AXIAL) == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert pane_letters(CORONAL) == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    assert pane_letters(SAGITTAL) == {"left": "A", "right": "P", "top": "S", "bottom": "I"}


@pytest.mark.parametrize(("axes", "viewer"), [(AXIAL, (0, 0, -1)), (CORONAL, (0, 1, 0)), (SAGITTAL, (-1, 0, 0))])
def test_patient_planes_are_seen_from_the_right_side(axes: PlaneAxes, viewer: tuple[int, int, int]) -> None:
    assert np.allclose(-axes.into, viewer)


@pytest.mark.parametrize("direction", [(-1, 0, 0), (0, -1, 0), (-0.6, -0.7, 0.3), (0.5, -0.2, 0.8), (0, 1, 0.2)])
def test_needle_axes_hold_the_needle_and_are_right_handed(direction: tuple[float, float, float]) -> None:
    d = np.array(direction) / np.linalg.norm(direction)
    along0, along90, eye = needle_axes(direction)
    for axes in (along0, along90):
        assert np.allclose(axes.right, d)
        assert abs(axes.up @ d) < 1e-12
    assert abs(along0.up @ along90.up) < 1e-12
    assert np.allclose(eye.into, d)  # the probe's eye looks the way the needle advances
    assert along90.up[2] > 0
    assert np.allclose(eye.up, along90.up)
    for axes in (along0, along90, eye):
        frame = np.stack((axes.right, -axes.up, axes.into), axis=1)
        assert np.linalg.det(frame) == pytest.approx(1.0)


def test_needle_from_the_right_is_seen_as_in_an_axial_slice() -> None:
    along0, along90, eye = needle_axes((-1.0, 0.0, 0.0))  # enters on the patient's right, advances to the left
    assert pane_letters(along0) == pane_letters(AXIAL)
    assert pane_letters(along90) == pane_letters(CORONAL)
    assert pane_letters(eye) == {"left": "P", "right": "A", "top": "S", "bottom": "I"}


def test_roll_is_continuous_in_the_needle_direction() -> None:
    """Turning the needle by 0.5° never turns a picture by more than 0.5° / sin(angle to the lock axis)."""
    step = np.deg2rad(0.5)
    for tilt in np.deg2rad((0, 20, 45, 70)):
        before: tuple[PlaneAxes, ...] | None = None
        for azimuth in np.arange(0.0, 2 * np.pi + step, step):
            d = (np.cos(tilt) * np.cos(azimuth), np.cos(tilt) * np.sin(azimuth), np.sin(tilt))
            now = needle_axes(d)
            if before is not None:
                for a, b in zip(before, now, strict=True):
                    for u, v in ((a.up, b.up), (a.right, b.right)):
                        assert np.arccos(np.clip(u @ v, -1, 1)) <= 1.01 * step / np.cos(tilt)
            before = now


def test_roll_does_not_flip_across_a_lock_switch_while_the_plan_stands() -> None:
    """A needle that wanders across the cone keeps the axis that the plan chose."""
    plan = (0.0, np.sin(np.deg2rad(24)), np.cos(np.deg2rad(24)))
    lock = lock_axis_for(plan)
    assert np.allclose(lock, (0, 1, 0))
    ups = []
    for angle in np.deg2rad(np.arange(15, 36, 0.25)):
        ups.append(needle_axes((0.0, np.sin(angle), np.cos(angle)), lock)[1].up)
    assert min(float(a @ b) for a, b in itertools.pairwise(ups)) > np.cos(np.deg2rad(0.3))
    assert np.allclose(lock_axis_for((-1.0, -1.0, 0.2)), (0, 0, 1))
    assert np.allclose(lock_axis_for(None), (0, 0, 1))


def test_needle_exactly_along_the_lock_axis_has_finite_axes() -> None:
    for axes in needle_axes((0.0, 0.0, 1.0)):
        assert np.isfinite(axes.right).all()
        assert np.allclose([np.linalg.norm(axes.right), np.linalg.norm(axes.up)], 1.0)
