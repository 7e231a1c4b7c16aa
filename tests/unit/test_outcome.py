"""What cohorts say at a margin: exact intervals, published curves, refusals, no curve alone."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest

from nav.ablation.outcome import Cohort, clopper_pearson, list_cohorts, load_cohort, statements_at
from nav.config.load import ConfigError


@pytest.mark.parametrize(("events", "n"), [(0, 32), (4, 29), (45, 94), (7, 7)])
def test_intervals_of_counts(events: int, n: int) -> None:
    exact = binomtest(events, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(events, n) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("laimer_2020_hcc", {0: 0.169, 2: 0.091, 3: 0.065, 5: 0.033, 10: 0.006}),
        ("wang_2013_crlm", {0: 0.696, 3: 0.565, 5: 0.471, 10: 0.257}),
    ],
)
def test_curves_are_the_published_ones(name: str, shares: dict[float, float]) -> None:
    cohort = load_cohort(name)
    for margin, share in shares.items():
        p, low, high = cohort.curve_at(margin)
        assert p == pytest.approx(share, abs=0.001)
        assert 0.0 < low < p < high < 1.0
    # Known best where the cohort's tumours are; the interval of all of them is that of the counts there.
    widths = [math.log(h / (1 - h)) - math.log(lo / (1 - lo)) for _, lo, h in map(cohort.curve_at, (0.0, 4.0, 10.0))]
    assert widths[1] < min(widths[0], widths[2])


def test_ratio_of_a_p_value_gives_an_interval() -> None:
    """0.54 per 5 mm with P = 0.002: z = 3.09, standard error 0.199 of the log."""
    ratio = load_cohort("wang_2013_crlm").ratio[0]
    assert 5.0 * ratio.log_se == pytest.approx(0.1994, abs=1e-3)
    assert load_cohort("laimer_2025_crlm").ratio[0].log_se == pytest.approx(math.log(0.61 / 0.36) / 3.92, rel=1e-3)


def test_every_statement_names_cohort_size_and_interval() -> None:
    said = statements_at(3.0)
    assert {s.cohort for s in said} == {load_cohort(n).name for n in list_cohorts()}
    for s in said:
        assert s.value is not None
        assert s.ci95 is not None
        assert s.ci95[0] <= s.value <= s.ci95[1]
        assert s.cohort in s.text
        assert f"n = {s.n}" in s.text
        assert "95 % CI" in s.text
    counted = next(s for s in said if "4)" in s.quantity)
    assert counted.value == pytest.approx(4 / 29)
    hazard = [s.value for s in said if "against a margin of 5 mm" in s.quantity]
    assert hazard == pytest.approx([0.47**-2, 0.42**-2])


@pytest.mark.parametrize(
    ("margin", "reason"), [(-0.5, "outside the cohort's"), (10.1, "beyond 10 mm"), (math.nan, "no margin")]
)
def test_nothing_is_said_outside(margin: float, reason: str) -> None:
    for s in statements_at(margin):
        assert s.value is None
        assert s.ci95 is None
        assert reason in s.refused
    at_seven = {s.cohort: s for s in statements_at(7.0)}
    assert "0 to 5 mm" in at_seven["Laimer 2025, colorectal metastases, RFA and MWA"].refused


def test_no_curve_is_shown_alone() -> None:
    short = Cohort.model_validate(load_cohort("wang_2013_crlm").model_dump() | {"margin_range_mm": (0.0, 4.0)})
    said = statements_at(6.0, (load_cohort("laimer_2020_hcc"), short))
    assert [s.value for s in said] == [None, None]
    assert "shown together or not" in said[0].refused


def test_wrong_cohort_files_are_refused(tmp_path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        'name="a"\ncitation="b"\npopulation="c"\nmargin_method="d"\nn=10\nevents=2\nmargin_range_mm=[0, 12]\n'
        '[[strata]]\nfrom_mm=0\nevents=3\nn=2\n[[ratio]]\nkind="odds ratio"\nvalue=0.5\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="3 of 2") as found:
        load_cohort(file)
    assert "ci95 or p_value" in str(found.value)
