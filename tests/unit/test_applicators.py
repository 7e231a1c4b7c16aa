"""Applicator charts: the numbers as published, interpolation inside, refusal outside, the zone on the needle."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nav.ablation.applicators import (
    Applicator,
    ChartRangeError,
    Cryoprobe,
    list_applicators,
    load_applicator,
    place_zone,
    zone_of_size,
)
from nav.config.load import ConfigError, parse_toml
from nav.geometry.rigid import Rigid

MINIMAL = """
name = "Mine"
manufacturer = "M"
device = "D"
basis = "ex vivo"
citation = "somewhere"
chart = [{ power_w = 50, time_s = 300, long_mm = 30, short_mm = 20, offset_mm = 10 }]
"""


def test_shipped_charts_are_complete_and_load() -> None:
    names = list_applicators()
    assert {"emprint", "amica", "acculis"} <= set(names)
    for name in names:
        applicator = load_applicator(name)
        assert applicator.citation
        assert applicator.basis
        for row in applicator.chart:
            size = applicator.size(row.power_w, row.time_s)
            assert size == pytest.approx((row.long_mm, row.short_mm, row.offset_mm), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "device", "left_out"),
    [
        ("emprint", "Covidien (Covidien MWA)", set()),
        ("amica", "Amica (Probe)", {900.0}),
        ("acculis", "Angyodinamics (Acculis)", set()),
    ],
)
def test_charts_hold_the_published_numbers(shared_data: Path, name: str, device: str, left_out: set[float]) -> None:
    with open(shared_data / "ablation_zones" / "brochure_ellipsoids.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["device"] == device]
    published = {
        (float(r["power_W"]), float(r["time_s"])): (
            2.0 * float(r["semi_long_mm"]),
            2.0 * float(r["semi_short_mm"]),
            -float(r["centre_offset_along_needle_mm"]),
        )
        for r in rows
        if float(r["time_s"]) not in left_out
    }
    ours = {(r.power_w, r.time_s): (r.long_mm, r.short_mm, r.offset_mm) for r in load_applicator(name).chart}
    assert published
    assert ours == published


def test_experiments_hold_the_published_numbers(shared_data: Path) -> None:
    with open(shared_data / "ablation_zones" / "luo2010_rfa.csv", encoding="utf-8") as file:
        luo = {
            (float(r["target_C"]), 60.0 * float(r["time_min"])): (
                pytest.approx(10.0 * float(r["long_diam_cm"])), pytest.approx(10.0 * float(r["trans_diam_cm"])),
                pytest.approx(5.0 * float(r["long_diam_cm"]) - 10.0 * float(r["beyond_tip_cm"])),
            )
            for r in csv.DictReader(file)
            if r["power_W"] == "30"
        }  # fmt: skip
    ours = load_applicator("uniblate").chart
    assert {(r.power_w, r.time_s): (r.long_mm, r.short_mm, r.offset_mm) for r in ours} == luo
    with open(shared_data / "ablation_zones" / "he2010_mwa.csv", encoding="utf-8") as file:
        he = {
            (float(r["power_W"]), 60.0 * float(r["time_min"])): tuple(
                float(r[k]) for k in ("long_axis_diam_mm", "short_axis_diam_mm")
            )
            for r in csv.DictReader(file)
            if (r["model"], r["antenna"]) == ("in_vivo_canine_liver", "internally-cooled")
        }
    assert {(r.power_w, r.time_s): (r.long_mm, r.short_mm) for r in load_applicator("he2010").chart} == he


def test_vendor_profiles_hold_the_measured_extents(shared_data: Path) -> None:
    with open(shared_data / "ablation_zones" / "stl_profile_extents.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    times = {"5m": 300, "6m30": 390, "7m30": 450, "8m": 480, "10m": 600}
    for row in rows:
        applicator = load_applicator({"emprint": "emprint_hp"}.get(row["device"], row["device"]))
        size = applicator.size(float(row["power_W"]), times[row["time"]])
        assert (size.long_mm, size.short_mm) == (float(row["extent_long_mm"]), float(row["extent_short_mm"]))
        assert -size.offset_mm - size.long_mm / 2 == pytest.approx(float(row["z_min_mm(tip at z=0; shaft to -z)"]))


def test_interpolation_is_linear_in_power_and_log_time() -> None:
    emprint = load_applicator("emprint")
    middle = emprint.size(87.5, math.sqrt(300.0 * 420.0))
    corners = [emprint.size(p, t) for p in (75, 100) for t in (300, 420)]
    np.testing.assert_allclose(middle, np.mean(corners, axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "power", "time", "words"),
    [
        ("emprint", 120.0, 300.0, ["power 120 W", "45 to 100 W"]),
        ("emprint", 44.9, 300.0, ["power 44.9 W", "45 to 100 W"]),
        ("emprint", 80.0, 601.0, ["time 601 s at 80 W", "150 to 600 s"]),
        ("emprint", math.nan, 300.0, ["power nan W"]),
        ("emprint", 80.0, math.nan, ["time nan s"]),
        ("amica", 80.0, 900.0, ["time 900 s", "180 to 600 s"]),
        ("neuwave_kidney", 60.0, 300.0, ["power 60 W", "65 W only"]),
        # A ragged chart: 75 W ends at 450 s, 150 W starts at 390 s.
        ("emprint_hp", 80.0, 600.0, ["time 600 s at 80 W", "300 to 450 s"]),
        ("emprint_hp", 120.0, 300.0, ["time 300 s at 120 W", "390 to 600 s"]),
    ],
)
def test_nothing_is_extrapolated(name: str, power: float, time: float, words: list[str]) -> None:
    with pytest.raises(ChartRangeError) as error:
        load_applicator(name).size(power, time)
    for word in [*words, "not extrapolated"]:
        assert word in str(error.value)


def test_single_power_chart_works_on_its_power() -> None:
    neuwave = load_applicator("neuwave_kidney")
    assert neuwave.power_range_w == (65.0, 65.0)
    assert neuwave.time_range_s(65.0) == (300.0, 600.0)
    assert neuwave.size(65.0, 450.0).long_mm == pytest.approx(36.0 + 7.0 * math.log(1.5) / math.log(2.0))


def test_single_row_chart_and_charts_without_common_time() -> None:
    mine = parse_toml(MINIMAL, Applicator, "mine.toml")
    assert mine.size(50.0, 300.0) == (30.0, 20.0, 10.0)
    with pytest.raises(ChartRangeError, match="300 s only"):
        mine.size(50.0, 301.0)
    rows = [dict(power_w=p, time_s=t, long_mm=3, short_mm=2, offset_mm=1) for p, t in ((40, 60), (60, 120))]
    apart = Applicator(name="a", manufacturer="", device="", basis="b", citation="c", chart=rows)
    with pytest.raises(ChartRangeError, match="no time in common"):
        apart.size(50.0, 60.0)


def test_a_file_with_mistakes_lists_them_all() -> None:
    text = MINIMAL.replace('citation = "somewhere"', "").replace("short_mm = 20", "short_mm = -20, colour = 1")
    with pytest.raises(ConfigError) as error:
        parse_toml(text, Applicator, "mine.toml")
    listed = "\n".join(error.value.problems)
    assert len(error.value.problems) == 3
    assert "citation: missing" in listed
    assert "chart[0].short_mm = -20" in listed
    assert "chart[0].colour" in listed


def test_duplicate_rows_and_far_offsets_are_refused() -> None:
    row = "{ power_w = 50, time_s = 300, long_mm = 30, short_mm = 20, offset_mm = 10 }"
    with pytest.raises(ConfigError, match="50 W, 300 s twice"):
        parse_toml(MINIMAL.replace(row, f"{row}, {row}"), Applicator, "mine.toml")
    with pytest.raises(ConfigError, match="offset_mm is 31"):
        parse_toml(MINIMAL.replace("offset_mm = 10", "offset_mm = 31"), Applicator, "mine.toml")


def test_a_site_loads_its_own_file_and_a_wrong_name_lists_the_known(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINIMAL, encoding="utf-8")
    assert load_applicator(file).name == "Mine"
    assert load_applicator(str(file)).name == "Mine"
    with pytest.raises(ConfigError, match="known: acculis, amica, emprint"):
        load_applicator("emprnt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_applicator(tmp_path / "absent.toml")


def test_what_is_set_has_its_own_unit_and_an_assumed_place_is_told() -> None:
    rempp = load_applicator("rempp_monopolar_water")
    assert rempp.size(1150.0, 900.0) == (41.0, 31.0, 20.5)
    with pytest.raises(ChartRangeError, match="current 900 mA, the chart covers 1100 to 1300 mA"):
        rempp.size(900.0, 900.0)
    zone = place_zone(rempp, 1150.0, 900.0, Rigid.identity("NeedleTipToRas"))
    assert zone.centre_ras[2] + zone.semi_long_mm == 0.0
    assert "place along the needle assumed" in zone.basis
    assert rempp.doubt is not None
    measured = load_applicator("uniblate")
    assert (measured.doubt, measured.setting(103.0)) == (None, "103 C")
    assert measured.size(103.0, 900.0).offset_mm == 10.0
    with pytest.raises(ConfigError, match="leave out the one or the other"):
        parse_toml(MINIMAL.replace("chart", 'offset_basis = "assumed"\nchart', 1), Applicator, "mine.toml")
    with pytest.raises(ConfigError, match="offset_mm: missing"):
        parse_toml(MINIMAL.replace(", offset_mm = 10", ""), Applicator, "mine.toml")


def test_the_heat_model_is_that_of_the_modality() -> None:
    heating = """
[heating]
tissue = "liver"
fitted_to = "-"
probe_c = -150
active_length_mm = 30
radius_mm = 1.2
held_out = { long_mm = 2, short_mm = 2 }
"""
    cryo = parse_toml('modality = "cryo"\n' + MINIMAL + heating, Applicator, "mine.toml")
    assert isinstance(cryo.heating, Cryoprobe)
    assert Applicator.model_validate(cryo.model_dump(exclude={"chart"}) | {"chart": cryo.chart}).heating == cryo.heating
    with pytest.raises(ConfigError, match="efficiency: missing"):
        parse_toml(MINIMAL + heating, Applicator, "mine.toml")
    with pytest.raises(ConfigError, match="not longer than the electrode is wide"):
        parse_toml(
            'modality = "radiofrequency"\n' + MINIMAL
            + heating.replace("probe_c = -150", "power_w = 30").replace("length_mm = 30", "length_mm = 2"),
            Applicator, "mine.toml",
        )  # fmt: skip


def test_zone_sits_behind_the_tip() -> None:
    emprint = load_applicator("emprint")
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.3, -0.8, 0.1]).as_matrix()
    pose[:3, 3] = (10.0, -20.0, 30.0)
    ras_from_tip = Rigid.from_matrix(pose, "NeedleTipToRas")
    zone = place_zone(emprint, 100.0, 600.0, ras_from_tip)
    advance = pose[:3, 2]
    np.testing.assert_allclose(zone.centre_ras, pose[:3, 3] - 13.5 * advance, atol=1e-12)
    np.testing.assert_allclose(zone.axis_ras, advance)
    assert (zone.semi_long_mm, zone.semi_short_mm, zone.tier) == (20.5, 18.0, 0)
    # Forward throw = L/2 − offset: 7 mm ahead of the tip.
    ahead = zone.centre_ras + zone.semi_long_mm * zone.axis_ras
    assert (ahead - pose[:3, 3]) @ advance == pytest.approx(7.0)
    assert "rmsandu" in zone.citation
    same = zone_of_size(emprint, 100.0, 600.0, emprint.size(100.0, 600.0), ras_from_tip)
    np.testing.assert_array_equal(same.centre_ras, zone.centre_ras)
