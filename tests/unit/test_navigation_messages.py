"""What is published of a snapshot: places and numbers as they are, and nothing of what the gate withholds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from drivers.openigtlink.navigation_messages import (
    PublishedNames,
    blanked,
    margin_text,
    tip_metadata,
    visible_tools,
    zone_image,
    zone_surface,
)
from drivers.openigtlink.wire import EncodeError
from drivers.room.geometry import RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import PatientModel, patient_case
from nav.ablation.zone import EllipsoidZone
from nav.geometry.poses import PoseStatus
from nav.guidance.numbers import GateState
from nav.imaging.contours import Mesh
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.snapshot import NavigationSnapshot
from tests.virtual_room import START_NS, play, room_messages, simulated_room

NAMES = PublishedNames.of(simulated_room())


@pytest.fixture(scope="module")
def snapshots(room_patient: PatientModel) -> list[NavigationSnapshot]:
    """From the first tick to guidance with a zone."""
    room = simulated_room()
    script = Script.build(room_patient.geometry, RoomSetup.from_room(room), 10.0)
    core = NavigationCore(room, CaseEssentials.of(patient_case(room_patient), margin_mm=5.0))
    return list(play(core, room_messages(script, 7.0), until_ns=START_NS + 6_500_000_000, tick_ns=20_000_000))


@pytest.fixture(scope="module")
def guided(snapshots: list[NavigationSnapshot]) -> NavigationSnapshot:
    last = snapshots[-1]
    assert last.gate.state is GateState.OK
    assert last.zone is not None
    assert last.margin is not None
    return last


def zone(centre: tuple[float, float, float], axis: tuple[float, float, float]) -> EllipsoidZone:
    along = np.array(axis) / np.linalg.norm(axis)
    return EllipsoidZone(np.array(centre), along, 22.0, 15.0, 0, "a", 100.0, 600.0, "in vivo", "c")


def test_names_fit_the_wire_and_follow_the_frames() -> None:
    assert (NAMES.tip, NAMES.registration) == ("NeedleTipToRas", "ReferenceToRas")
    every = [*NAMES.tools.values(), NAMES.registration, NAMES.zone, NAMES.margin, NAMES.zone_map, NAMES.tracking]
    assert all(name.isascii() and len(name) <= 20 for name in every)
    assert len(set(every)) == len(every)
    with pytest.raises(EncodeError, match=r"'MicrowaveAntennaTipToRas': 24 bytes, limit 20; give the frame"):
        PublishedNames.of(simulated_room().model_copy(update={"needle_frame": "MicrowaveAntennaTip"}))


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 0), (0.3, -0.8, 0.5), (0, -1, 1e-9)])
def test_the_surface_is_the_ellipsoid_and_faces_outwards(axis: tuple[float, float, float]) -> None:
    z = zone((10.0, -20.0, 30.0), axis)
    vertices, triangles = zone_surface(z)
    offset = vertices - z.centre_ras
    along = offset @ z.axis_ras
    across = np.linalg.norm(offset - along[:, None] * z.axis_ras, axis=1)
    assert np.abs((along / 22.0) ** 2 + (across / 15.0) ** 2 - 1.0).max() < 1e-12
    volume = Mesh.of(vertices, triangles).volume_mm3
    true = 4.0 / 3.0 * np.pi * 22.0 * 15.0**2
    assert 0.97 * true < volume < true, "outwards, and inside the true zone"
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all(), "closed"


@pytest.mark.parametrize("axis", [(0, 0, 1), (0.3, -0.8, 0.5)])
def test_the_label_map_lies_where_the_zone_is(axis: tuple[float, float, float]) -> None:
    z = zone((10.3, -20.7, 30.1), axis)
    array, ras_from_index = zone_image(z)
    k, j, i = np.nonzero(array)
    points = np.column_stack([i, j, k, np.ones(len(i))]) @ ras_from_index.T
    assert np.abs(points[:, :3].mean(axis=0) - z.centre_ras).max() < 0.1
    offset = points[:, :3] - z.centre_ras
    along = offset @ z.axis_ras
    across2 = np.einsum("ij,ij->i", offset, offset) - along**2
    assert ((along / 22.0) ** 2 + across2 / 15.0**2).max() <= 1.0 + 1e-9
    assert array.sum() == pytest.approx(4.0 / 3.0 * np.pi * 22.0 * 15.0**2, rel=0.01)
    border = array.copy()
    border[2:-2, 2:-2, 2:-2] = 0
    assert not border.any(), "nothing is cut off at the edge"


def test_nothing_is_withheld_and_yet_sent(snapshots: list[NavigationSnapshot]) -> None:
    blank = [s for s in snapshots if s.gate.state is GateState.BLANK]
    assert blank
    for snapshot in blank:
        text = json.loads(margin_text(snapshot, None))
        assert all(text[key] is None for key in ("margin", "tip", "zone", "uncertainty", "acquired_utc_ns"))
        assert text["gate"] == "BLANK"
        assert text["reasons"]
        assert tip_metadata(snapshot)["TransformStatus"] != "OK"
        assert [len(part) for part in zone_surface(snapshot.zone)] == [0, 0]
        assert NAMES.tip not in [tool.name for tool in visible_tools(snapshot, NAMES)]


def test_the_numbers_are_those_of_the_snapshot(guided: NavigationSnapshot) -> None:
    assert guided.margin is not None
    assert guided.guidance is not None
    assert guided.uncertainty is not None
    assert guided.zone is not None
    text = json.loads(margin_text(guided, 123))
    assert text["margin"]["min_margin_mm"] == guided.margin.min_margin_mm
    assert text["margin"]["sigma_mm"] == guided.margin.sigma_mm
    assert text["tip"]["tip_to_target_mm"] == guided.guidance.tip_to_target_mm
    assert text["tip"]["ras_mm"] == guided.guidance.tip_ras.tolist()
    assert text["uncertainty"]["radius95_mm"] == guided.uncertainty.radius95_mm
    assert text["zone"]["long_mm"] == 2 * guided.zone.semi_long_mm
    assert text["registration"]["method"] == "landmarks"
    assert (text["gate"], text["reasons"], text["acquired_utc_ns"]) == ("OK", [], 123)
    assert tip_metadata(guided) == {"TransformStatus": "OK", "GateState": "OK", "GateReasons": ""}


def test_only_visible_tools_are_tracked(guided: NavigationSnapshot) -> None:
    tools = {tool.name: tool.matrix for tool in visible_tools(guided, NAMES)}
    assert guided.needle.pose is not None
    assert np.array_equal(tools["NeedleTipToRas"], guided.needle.pose.matrix)
    lost = replace(guided, needle=replace(guided.needle, pose=None, status=PoseStatus.MISSING))
    assert "NeedleTipToRas" not in [tool.name for tool in visible_tools(lost, NAMES)]


def test_a_number_that_is_not_finite_is_null(guided: NavigationSnapshot) -> None:
    assert guided.margin is not None
    odd = replace(guided, margin=replace(guided.margin, min_margin_mm=float("nan")))
    assert json.loads(margin_text(odd, None))["margin"]["min_margin_mm"] is None


def test_blanked_withholds_everything_and_says_why(guided: NavigationSnapshot) -> None:
    blank = blanked(guided, "compute_stopped", "nothing has been computed for 300 ms")
    text = json.loads(margin_text(blank, None))
    assert text["gate"] == "BLANK"
    assert text["reasons"][0]["code"] == "compute_stopped"
    assert text["margin"] is text["tip"] is text["zone"] is None
    assert visible_tools(blank, NAMES) == ()
    assert tip_metadata(blank)["TransformStatus"] == "INVALID"
    assert guided.needle.pose is not None, "the snapshot itself is unchanged"
