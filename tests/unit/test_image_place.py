"""A slice that its own header places: is the patient in it?"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.runtime.image_place import misplaced

SIZE = (512, 512)
PITCH = 0.7
#: Skin landmarks around a body whose middle is not the scanner's.
MIDDLE = np.array([-160.0, -190.0, 40.0])
_ANGLES = np.linspace(0.0, 2.0 * np.pi, 9)[:-1]
POINTS = MIDDLE + np.stack([120.0 * np.cos(_ANGLES), 90.0 * np.sin(_ANGLES), 30.0 * np.sin(3.0 * _ANGLES)], axis=1)


def axial(middle: NDArray[np.float64]) -> NDArray[np.float64]:
    m = np.diag([-PITCH, -PITCH, 5.0, 1.0])
    m[:3, 3] = middle - m[:3, :3] @ np.array([255.5, 255.5, 0.0])
    return m


def half() -> NDArray[np.float64]:
    return axial(MIDDLE)[:3, :3] @ np.array([255.5, 255.5, 0.0])


def test_a_slice_through_the_body_is_in_place_at_any_height_and_angle() -> None:
    tilted = np.eye(4)
    c, s = np.cos(0.3), np.sin(0.3)
    tilted[1:3, 1:3] = [[c, -s], [s, c]]
    about = np.eye(4)
    about[:3, 3] = MIDDLE
    turn = about @ tilted @ np.linalg.inv(about)
    for z in (-100.0, 40.0, 300.0):
        assert misplaced(axial(np.array([*MIDDLE[:2], z])), SIZE, POINTS) is None
    assert misplaced(turn @ axial(MIDDLE), SIZE, POINTS) is None


@pytest.mark.parametrize(
    ("placed", "mistake", "remedy"),
    [
        (axial(MIDDLE - half()), "a corner taken for the centre", "Set origin_is_corner = true"),
        (axial(MIDDLE + half()), "the centre taken for a corner", "Remove origin_is_corner"),
        (np.diag([-1.0, -1.0, 1.0, 1.0]) @ axial(MIDDLE), "RAS and LPS are exchanged", "Correct coordinate_override"),
    ],
)
def test_a_usual_mistake_is_named_with_its_remedy(placed: NDArray[np.float64], mistake: str, remedy: str) -> None:
    found = misplaced(placed, SIZE, POINTS)
    assert found is not None
    assert found.code == "image_misplaced"
    assert mistake in found.seen
    assert remedy in found.what_to_do
    assert "100% then" in found.value


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert misplaced(axial(MIDDLE - half()), SIZE, POINTS[:2]) is None
    far = axial(MIDDLE + np.array([2000.0, 0.0, 0.0]))
    assert misplaced(far, SIZE, POINTS) is None  # no usual mistake explains it
