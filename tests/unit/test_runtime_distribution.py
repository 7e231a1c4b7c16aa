"""Percentiles in bounded memory: as close to those of all values as is said, whatever comes in whatever order."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav.runtime.distribution import Distribution


def distribution(values: list[float]) -> Distribution:
    out = Distribution()
    for value in values:
        out.add(value)
    return out


@given(
    st.lists(
        st.floats(-1e6, 1e6) | st.floats(-0.1, 0.1) | st.sampled_from([0.0, -0.0, 5e-324, 1e-5, 250.0]), min_size=1
    ),
    st.floats(0, 100),
)
def test_percentiles_are_as_close_as_said(values: list[float], percent: float) -> None:
    found = distribution(values)
    rank = percent / 100 * (len(values) - 1)
    lower, upper = sorted(values)[int(rank)], sorted(values)[min(int(rank) + 1, len(values) - 1)]
    tolerance = 1e-5 + 1e-3 * max(abs(lower), abs(upper))
    assert found.percentile(percent) == pytest.approx(np.percentile(values, percent), rel=0, abs=tolerance)
    assert found.min <= found.percentile(percent) <= found.max
    assert (found.n, found.last, found.min, found.max) == (len(values), values[-1], min(values), max(values))


def test_without_values_there_are_no_numbers() -> None:
    assert Distribution().numbers("last", "p5", "max") == {"last": None, "p5": None, "max": None}
    assert Distribution().percentile(50) is None


def test_one_value_is_every_percentile() -> None:
    assert distribution([-12.3456789]).numbers("last", "p5", "p50", "p95", "min", "max") == dict.fromkeys(
        ("last", "p5", "p50", "p95", "min", "max"), -12.3456789
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_not_counted(value: float) -> None:
    found = distribution([1.0])
    with pytest.raises(ValueError, match="not finite"):
        found.add(value)
    assert found.numbers("last", "max") == {"last": 1.0, "max": 1.0}


def test_memory_is_that_of_the_range_and_bounded() -> None:
    ages = distribution([float(v) for v in np.random.default_rng(1).uniform(15, 40, 10_000)])
    assert sys.getsizeof(ages._counts) < 16_000
    wide = distribution([0.0, 1e300, -1e300, 1e-300])
    assert sys.getsizeof(wide._counts) < 500_000
    assert wide.numbers("min", "max") == {"min": -1e300, "max": 1e300}
