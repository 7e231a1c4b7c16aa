"""Poly-lines cut into strokes."""

from __future__ import annotations

import numpy as np
import pytest

from nav.hud.pane_frame import Polyline
from nav.hud.strokes import MAX_DASHES, dashed, strokes


def lengths(pairs: np.ndarray) -> np.ndarray:
    return np.hypot(*(pairs[1::2] - pairs[::2]).T)


def test_segments_pass_through_and_open_lines_are_joined_in_order() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    assert strokes(Polyline("tumour", points[:2], segments=True)).tolist() == points[:2].tolist()
    pairs = strokes(Polyline("tumour", points))
    assert pairs.tolist() == [[0, 0], [1, 0], [1, 0], [1, 2]]
    closed = strokes(Polyline("tumour", points, closed=True))
    assert closed[-2:].tolist() == [[1, 2], [0, 0]]
    assert lengths(closed).sum() == pytest.approx(3.0 + np.sqrt(5.0))


def test_dashes_have_their_lengths_and_gaps_and_end_with_the_line() -> None:
    pairs = dashed(np.array([[0.0, 0.0], [100.0, 0.0]]), (10.0, 6.0))
    starts = pairs[::4, 0]
    assert np.allclose(starts, np.arange(0.0, 100.0, 16.0))
    assert pairs[:, 0].max() == 100.0
    assert lengths(pairs).sum() == pytest.approx(6 * 10.0 + 4.0)


def test_dash_dot_uses_the_whole_pattern() -> None:
    pairs = dashed(np.array([[0.0, 0.0], [0.0, 25.0]]), (12.0, 5.0, 3.0, 5.0))
    assert pairs[::4, 1].tolist() == [0.0, 17.0]
    assert lengths(pairs).tolist() == [6.0, 6.0, 1.5, 1.5]


def test_dashes_follow_a_curve() -> None:
    angle = np.linspace(0.0, 2.0 * np.pi, 200)
    circle = 50.0 * np.column_stack([np.cos(angle), np.sin(angle)])
    pairs = dashed(circle, (10.0, 6.0))
    assert np.abs(np.hypot(*pairs.T) - 50.0).max() < 0.02


def test_a_line_of_no_length_or_of_absurd_length_stays_harmless() -> None:
    assert len(dashed(np.zeros((2, 2)), (10.0, 6.0))) == 0
    assert len(dashed(np.array([[0.0, 0.0], [1e7, 0.0]]), (10.0, 6.0))) == 4 * MAX_DASHES
