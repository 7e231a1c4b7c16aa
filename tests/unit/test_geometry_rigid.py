"""Rigid transforms and the pixel map: what is accepted, what is refused, and that chains close."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.frames import TransformName
from nav.geometry.rigid import FrameMismatchError, NotRigidError, PixelMap, Rigid, rotation_angle_rad

_angles = st.tuples(*[st.floats(-np.pi, np.pi)] * 3)
_shifts = st.tuples(*[st.floats(-1e3, 1e3)] * 3)


def _matrix(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> NDArray[np.float64]:
    m = np.eye(4)
    m[:3, :3] = Rotation.from_euler("ZYX", angles).as_matrix()
    m[:3, 3] = shift
    return m


@given(_angles, _shifts, _angles, _shifts)
def test_composition_is_the_product_and_inverts(a: tuple, p: tuple, b: tuple, q: tuple) -> None:
    reference_from_needle = Rigid.from_matrix(_matrix(a, p), "NeedleToReference")
    ras_from_reference = Rigid.from_matrix(_matrix(b, q), "ReferenceToRas")
    ras_from_needle = ras_from_reference @ reference_from_needle
    assert ras_from_needle.name == TransformName("Needle", "Ras")
    np.testing.assert_allclose(ras_from_needle.matrix, _matrix(b, q) @ _matrix(a, p), atol=1e-9)
    back = ras_from_needle.inverse()
    assert back.name.code == "needle_from_ras"
    np.testing.assert_allclose(back.matrix @ ras_from_needle.matrix, np.eye(4), atol=1e-9)
    points = np.array([[0.0, 0.0, 0.0], [1.0, -2.0, 3.0]])
    np.testing.assert_allclose(back.apply(ras_from_needle.apply(points)), points, atol=1e-8)
    assert ras_from_needle.apply(points[1]).shape == (3,)


@given(_angles, _shifts)
def test_float32_rounding_is_projected_to_a_rotation(angles: tuple, shift: tuple) -> None:
    wire = _matrix(angles, shift).astype(np.float32)
    rigid = Rigid.from_matrix(wire, "NeedleToTracker")
    np.testing.assert_allclose(rigid.rotation.T @ rigid.rotation, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(rigid.matrix, wire, atol=1e-4)


def test_equality_and_hash_agree() -> None:
    one = Rigid.identity("AToB")
    minus = np.eye(4)
    minus[0, 3] = -0.0
    other = Rigid.from_matrix(minus, "AToB")
    assert np.signbit(other.matrix[0, 3])
    assert one == other
    assert hash(one) == hash(other)
    assert one != Rigid.identity("AToC")


def test_matrix_is_read_only_and_detached_from_its_source() -> None:
    source = np.eye(4)
    rigid = Rigid.from_matrix(source, "AToB")
    source[0, 3] = 5.0
    assert rigid.translation[0] == 0.0
    for view in (rigid.matrix, rigid.rotation, rigid.translation, (rigid @ Rigid.identity("CToA")).matrix):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 1.0


def test_neighbours_must_match() -> None:
    with pytest.raises(FrameMismatchError, match="Reference and Tracker do not match"):
        _ = Rigid.identity("ReferenceToRas") @ Rigid.identity("NeedleToTracker")
    with pytest.raises((TypeError, ValueError)):
        _ = Rigid.identity("ReferenceToRas") @ np.eye(4)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m[:3], "shape"),
        (lambda m: m * np.nan, "not finite"),
        (lambda m: m + np.diag([0, 0, 0, np.inf]), "not finite"),
        (lambda m: m + np.outer([0, 0, 0, 1], [0, 0, 1e-3, 0]), "last row"),
        (lambda m: m @ np.diag([1.1, 1.1, 1.1, 1.0]), "not orthonormal"),
        (lambda m: m @ np.diag([1e-3, 1e-3, 1e-3, 1.0]), "not orthonormal"),
        (lambda m: m * 0.0 + np.diag([0, 0, 0, 1.0]), "not orthonormal"),
        (lambda m: m @ np.diag([1.0, 1.0, -1.0, 1.0]), "mirrors"),
    ],
)
def test_refused_at_the_door(change, words: str) -> None:
    with pytest.raises(NotRigidError, match=words) as caught:
        Rigid.from_matrix(change(_matrix((0.3, 0.2, 0.1), (1.0, 2.0, 3.0))), "NeedleToTracker")
    assert "NeedleToTracker" in str(caught.value)


def test_survives_pickling_read_only() -> None:
    rigid = Rigid.from_matrix(_matrix((0.3, 0.2, 0.1), (1.0, 2.0, 3.0)), "NeedleToTracker")
    again = pickle.loads(pickle.dumps(rigid))
    assert again == rigid
    assert isinstance(again.name, TransformName)
    assert not again.matrix.flags.writeable


def test_directions_are_rotated_not_shifted() -> None:
    rigid = Rigid.from_matrix(_matrix((np.pi / 2, 0.0, 0.0), (10.0, 20.0, 30.0)), "AToB")
    np.testing.assert_allclose(rigid.rotate([1.0, 0.0, 0.0]), [0.0, 1.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, 3.0, np.pi - 1e-9, np.pi])
def test_rotation_angle_is_exact_at_both_ends(angle: float) -> None:
    axis = np.array([1.0, 2.0, -2.0]) / 3.0
    assert rotation_angle_rad(Rotation.from_rotvec(angle * axis).as_matrix()) == pytest.approx(angle, abs=2e-8)


def test_pixel_map_scales_and_is_placed_by_a_rigid() -> None:
    probe_from_image = PixelMap.from_matrix(np.diag([0.2, 0.2, 1.0, 1.0]), "ImageToProbe")
    ras_from_probe = Rigid.from_matrix(_matrix((0.0, 0.0, 0.0), (1.0, 2.0, 3.0)), "ProbeToRas")
    placed = probe_from_image.placed_by(ras_from_probe)
    assert placed.name.wire == "ImageToRas"
    np.testing.assert_allclose(placed.apply([10, 20, 0]), [3.0, 6.0, 3.0])
    with pytest.raises(FrameMismatchError):
        probe_from_image.placed_by(Rigid.identity("StylusToRas"))
    with pytest.raises(NotRigidError, match="singular"):
        PixelMap.from_matrix(np.diag([0.2, 0.2, 0.0, 1.0]), "ImageToProbe")
