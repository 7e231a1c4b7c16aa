"""The stated accuracy is true in the default room: 200 procedures on a virtual clock (`benchmarks/tre_calibration`)."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SEEDS = 200


@pytest.fixture(scope="module")
def study_module() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "tre_calibration.py"
    spec = importlib.util.spec_from_file_location("tre_calibration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_stated_95_percent_covers_91_to_98_percent(study_module: ModuleType) -> None:
    geometry, setup, config = study_module.default_room()
    study = study_module.run_study(geometry, setup, config, range(1, SEEDS + 1), moments=2)
    assert len(study.samples["registration"][0]) == SEEDS
    for name in ("registration", "tip_at_pose", "tip_rest", "tip_advance"):
        assert 0.91 <= study.coverage(name) <= 0.98, f"{name}: {100 * study.coverage(name):.1f} %"


def test_wrong_prior_is_mended_by_the_residuals_and_a_blind_belief_in_it_is_caught(
    study_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prior three times too small still gives an honest radius; taken as certain, the study shows it to be false."""
    geometry, setup, config = study_module.default_room()
    config = config.model_copy(update={"landmark_rms_mm": 0.33})
    study = study_module.run_study(geometry, setup, config, range(1, 41), moments=0)
    assert study.coverage("registration") >= 0.85
    blind = functools.partial(study_module.register_landmarks, prior_dof=1e6)
    monkeypatch.setattr(study_module, "register_landmarks", blind)
    study = study_module.run_study(geometry, setup, config, range(1, 41), moments=0)
    assert study.coverage("registration") < 0.7
