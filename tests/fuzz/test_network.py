"""Some hundred hostile connections; the long run is in docs/openigtlink-robustness.md."""

from __future__ import annotations

import logging

import pytest
from numba import config as numba_config

from tests.fuzz.network import attack_server, attack_source

pytestmark = pytest.mark.skipif(
    bool(numba_config.DISABLE_JIT), reason="the receive kernel calls the C library, which plain Python cannot do for it"
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="drivers")


def test_hostile_clients_harm_nobody_else() -> None:
    report = attack_server(250, seed=3, slow=False, at_once=100)
    assert report.failures == []
    assert report.connections > 250
    assert len(report.attacks) >= 12


def test_hostile_server_harms_no_other_source() -> None:
    report = attack_source(80, seed=3)
    assert report.failures == []
    assert report.connections >= 80
