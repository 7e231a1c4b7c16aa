"""``ablation-nav zone``: masks and numbers of every tier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.geometry.volume import Volume
from nav.io.labels import read_label_map
from nav.io.volume_file import write_volume


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["zone", *arguments, "--json"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert isinstance(report, dict)
    return report


def volume_ml(path: Path) -> float:
    mask = read_label_map(path).volume
    return float(np.asarray(mask.array).sum()) * float(np.prod(mask.spacing_mm)) * 1e-3


def test_every_tier_writes_the_zone_it_tells_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--applicator", "emprint", "--power", "45", "--time", "240"]
    place = ["--tip=10,-20,30", "--entry=10,-20,100"]
    reports = {}
    for tier in (0, 1, 2):
        out = tmp_path / f"tier{tier}.nrrd"
        report = run(capsys, *given, *place, "--tier", str(tier), "--out", str(out))
        reports[tier] = report
        assert report["tier"] == tier
        assert volume_ml(out) == pytest.approx(report["volume_ml"], rel=0.02)
        mask = read_label_map(out).volume
        points = mask.to_ras(np.argwhere(np.asarray(mask.array))[:, ::-1].astype(float))
        # The needle comes from above; the zone's middle lies behind the tip.
        assert points.mean(axis=0) == pytest.approx([10.0, -20.0, 41.0], abs=0.6)
        assert np.ptp(points[:, 2]) == pytest.approx(float(str(report["long_mm"])), abs=1.0)
        if tier == 0:
            assert report["band"] is None
            assert report["citation"]
            continue
        band = report["band"]
        assert isinstance(band, dict)
        assert band["inner"]["volume_ml"] < float(str(report["volume_ml"])) < band["outer"]["volume_ml"]
        assert volume_ml(tmp_path / f"tier{tier}-inner.nrrd") == pytest.approx(band["inner"]["volume_ml"], rel=0.03)
        assert volume_ml(tmp_path / f"tier{tier}-outer.nrrd") == pytest.approx(band["outer"]["volume_ml"], rel=0.03)
    assert reports[0]["long_mm"] == 26.0
    assert reports[2]["short_mm"] == pytest.approx(reports[1]["short_mm"], abs=0.4)

    matrix = np.eye(4)
    matrix[:3, 3] = (18.0, -30.0, 20.0)
    vessel = Volume.of(np.where(np.indices((50, 20, 5))[2] >= 0, 7, 0).astype(np.uint8), matrix)
    write_volume(tmp_path / "vessel.nrrd", vessel)
    cooled = {
        tier: run(
            capsys, *given, *place, "--tier", str(tier), "--out", str(tmp_path / f"v{tier}.nrrd"),
            "--vessel", str(tmp_path / "vessel.nrrd"), "--vessel-label", "7",
        )
        for tier in (1, 2)
    }  # fmt: skip
    assert float(str(cooled[2]["volume_ml"])) < 0.9 * float(str(reports[2]["volume_ml"]))
    # The empirical rule leaves less than the heat computed in three dimensions, and says what it is.
    assert float(str(cooled[1]["volume_ml"])) < float(str(cooled[2]["volume_ml"]))
    assert volume_ml(tmp_path / "v1.nrrd") == pytest.approx(cooled[1]["volume_ml"], rel=0.03)
    assert [cooled[1]["vessel_correction"], cooled[2]["vessel_correction"]] == ["empirical", "computed"]
    assert reports[1]["vessel_correction"] is None
    assert "empirical" in str(cooled[1]["basis"])
    band = cooled[1]["band"]
    assert isinstance(band, dict)
    assert band["inner"]["volume_ml"] < float(str(cooled[1]["volume_ml"])) < band["outer"]["volume_ml"]


def test_a_device_fitted_in_another_tissue_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--applicator", "acculis", "--power", "60", "--time", "120", "--out", str(tmp_path / "z.nrrd")]
    assert run(capsys, *given, "--tissue", "liver_ex_vivo")["warnings"] == []
    warnings = run(capsys, *given, "--tissue", "liver")["warnings"]
    assert isinstance(warnings, list)
    assert "liver_ex_vivo" in warnings[0]


def test_a_frozen_zone_comes_with_what_is_surely_dead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--applicator", "visica2_liver", "--power", "1", "--time", "240"]
    for tier in ("1", "2"):
        report = run(capsys, *given, "--tier", tier, "--out", str(tmp_path / "z.nrrd"))
        assert (report["control"], report["lethal_c"]) == ("cm", -20.0)
        sure, warnings = report["sure"], report["warnings"]
        assert isinstance(sure, dict)
        assert isinstance(warnings, list)
        assert sure["celsius"] == -40.0
        assert sure["volume_ml"] < 0.7 * float(str(report["volume_ml"]))
        assert volume_ml(tmp_path / "z-sure.nrrd") == pytest.approx(sure["volume_ml"], rel=0.05)
        assert volume_ml(tmp_path / "z.nrrd") == pytest.approx(report["volume_ml"], rel=0.05)
        assert "assumed to end at the tip" in warnings[0]
        assert "some cells survive" in warnings[1]
    assert main(["zone", *given, "--tissue", "fat", "--out", str(tmp_path / "f.nrrd")]) == ExitCode.CONFIGURATION
    assert "Fat: its file has no [freezing]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--power", "150", "--time", "300"], "45 to 100 W", ExitCode.CONFIGURATION),
        (["--power", "75", "--time", "300", "--tissue", "cheese"], "tissue 'cheese'", ExitCode.CONFIGURATION),
        (["--power", "75", "--time", "300", "--tier", "0", "--vessel", "v.nrrd"], "knows no vessels", ExitCode.USAGE),
        (["--power", "75", "--time", "300", "--tip=1,2,3"], "give both", ExitCode.USAGE),
        (["--power", "75", "--time", "300", "--tip=1,2,3", "--entry=1,2,3"], "at least 1 mm", ExitCode.USAGE),
        (["--power", "75", "--time", "300", "--tip-sigma-mm", "nan"], "0 or more", ExitCode.USAGE),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str, code: ExitCode
) -> None:
    assert main(["zone", "--applicator", "emprint", *arguments, "--out", str(tmp_path / "z.nrrd")]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "z.nrrd").exists()
