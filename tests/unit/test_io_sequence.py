"""Sequence metafiles of PLUS and Slicer."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from nav.geometry.poses import PoseStatus
from nav.io.errors import SequenceError
from nav.io.itk import sitk
from nav.io.sequence import TrackedSequence, TransformTrack, read_sequence, write_sequence

HEAD = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = {compressed}
DimSize = {size}
ElementType = {kind}
UltrasoundImageOrientation = {orientation}
"""
EYE = "1 0 0 {x} 0 1 0 0 0 0 1 0 0 0 0 1"


def mha(
    file: Path, frames: str, payload: bytes = b"", *, size: str = "0 0 3", orientation: str = "XX",
    compressed: bool = False, kind: str = "MET_UCHAR",
) -> Path:  # fmt: skip
    head = HEAD.format(size=size, orientation=orientation, compressed=compressed, kind=kind)
    file.write_bytes((head + frames + "ElementDataFile = LOCAL\n").encode() + payload)
    return file


def three_frames() -> str:
    lines = []
    for i, status in enumerate(("OK", "INVALID", "ok")):
        lines += [
            f"Seq_Frame{i:04d}_ProbeToTrackerTransform = {EYE.format(x=i + 1)}",
            f"Seq_Frame{i:04d}_ProbeToTrackerTransformStatus = {status}",
            f"Seq_Frame{i:04d}_Timestamp = {10 + i * 0.5}",
            f"Seq_Frame{i:04d}_UnfilteredTimestamp = {10.01 + i * 0.5}",
            f"Seq_Frame{i:04d}_FrameNumber = {100 + i}",
            f"Seq_Frame{i:04d}_ImageStatus = {'OK' if i else 'INVALID'}",
        ]
    return "\n".join(lines) + "\n"


def test_tracking_only_and_lost_tool(tmp_path: Path) -> None:
    sequence = read_sequence(mha(tmp_path / "a.igs.mha", three_frames(), kind="MET_OTHER"))
    track = sequence.transforms["ProbeToTracker"]
    assert len(sequence) == 3
    assert sequence.images is None
    assert not sequence.image_valid.any()
    assert track.statuses == (PoseStatus.OK, PoseStatus.INVALID, PoseStatus.OK)
    assert track.matrices[0, 0, 3] == 1.0
    assert np.isnan(track.matrices[1]).all()
    np.testing.assert_array_equal(track.valid, [True, False, True])
    np.testing.assert_allclose(sequence.timestamps_s, [10.0, 10.5, 11.0])
    assert sequence.unfiltered_timestamps_s is not None
    np.testing.assert_allclose(sequence.unfiltered_timestamps_s, [10.01, 10.51, 11.01])
    assert sequence.fields["FrameNumber"] == ("100", "101", "102")
    assert sequence.warnings == ()


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        ("MF", lambda a: a),
        ("MFA", lambda a: a),
        ("MN", lambda a: a[:, ::-1]),
        ("UF", lambda a: a[:, :, ::-1]),
        ("UN", lambda a: a[:, ::-1, ::-1]),
        ("FM", lambda a: a.swapaxes(1, 2)),
        ("NU", lambda a: a[:, ::-1, ::-1].swapaxes(1, 2)),
        ("FU", lambda a: a[:, ::-1].swapaxes(1, 2)),
        ("NM", lambda a: a[:, :, ::-1].swapaxes(1, 2)),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_images_are_turned_to_mf(tmp_path: Path, orientation: str, turn: object, compressed: bool) -> None:
    stored = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    payload = zlib.compress(stored.tobytes()) if compressed else stored.tobytes()
    file = mha(
        tmp_path / "a.igs.mha", three_frames(), payload, size="5 4 3", orientation=orientation, compressed=compressed
    )
    sequence = read_sequence(file)
    assert callable(turn)
    np.testing.assert_array_equal(sequence.images, turn(stored))
    np.testing.assert_array_equal(sequence.image_valid, [False, True, True])
    assert read_sequence(file, images=False).images is None


def test_absent_status_absent_pose_and_time_going_back(tmp_path: Path) -> None:
    frames = (
        f"Seq_Frame0000_StylusToTrackerTransform = {EYE.format(x=1)}\nSeq_Frame0000_Timestamp = 5\n"
        f"Seq_Frame0002_StylusToTrackerTransform = {EYE.format(x=3)}\nSeq_Frame0002_Timestamp = 4\n"
    )
    sequence = read_sequence(mha(tmp_path / "a.igs.mha", frames))
    assert sequence.transforms["StylusToTracker"].statuses == (PoseStatus.OK, PoseStatus.MISSING, PoseStatus.OK)
    assert any("carries no status" in w for w in sequence.warnings)
    assert any("1 of 3 frames have no Timestamp" in w for w in sequence.warnings)
    assert any("time does not advance at 1 frames" in w for w in sequence.warnings)


def test_pose_without_its_status_is_not_vouched_for(tmp_path: Path) -> None:
    frames = three_frames().replace("Seq_Frame0002_ProbeToTrackerTransformStatus = ok\n", "")
    track = read_sequence(mha(tmp_path / "a.igs.mha", frames)).transforms["ProbeToTracker"]
    assert track.statuses[2] is PoseStatus.UNKNOWN
    assert np.isnan(track.matrices[2]).all()


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        ("Seq_Frame0000_AToBTransform = 1 2 3\n", {}, "Seq_Frame0000_AToBTransform is not 16 numbers"),
        (f"Seq_Frame0000_AToBTransform = {EYE.format(x='x')}\n", {}, "is not 16 numbers"),
        (f"Seq_Frame0000_AToBTransform = {EYE.format(x='nan')}\n", {}, "status OK but is not finite"),
        ("Seq_Frame0003_Timestamp = 1\n", {}, "beyond its 3 frames"),
        ("Seq_Frame0000_Timestamp = soon\n", {}, "Timestamp = 'soon' is not a number"),
        ("", {"size": "5 4 3"}, "truncated: 0 bytes of pixels, 60 announced"),
        ("", {"size": "5 4 3", "compressed": True}, "truncated"),
        ("", {"size": "5 4 2 3"}, "volumes over time"),
        ("", {"size": "5 four 3"}, "DimSize = '5 four 3'"),
        ("", {"size": "99999 99999 99999"}, "limit"),
        ("", {"size": "5 4 3", "kind": "MET_STRANGE"}, "ElementType = 'MET_STRANGE'"),
        ("", {"size": "0 0 3", "orientation": "MF"}, ""),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, frames: str, arguments: dict[str, object], message: str) -> None:
    file = mha(tmp_path / "a.igs.mha", frames, **arguments)  # type: ignore[arg-type]
    if not message:
        assert read_sequence(file).images is None
        return
    with pytest.raises(SequenceError, match=message):
        read_sequence(file)


def test_unknown_orientation_and_truncated_header(tmp_path: Path) -> None:
    file = mha(tmp_path / "a.igs.mha", "", bytes(60), size="5 4 3", orientation="MU")
    with pytest.raises(SequenceError, match="UltrasoundImageOrientation = 'MU'"):
        read_sequence(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SequenceError, match="no ElementDataFile line; it is truncated"):
        read_sequence(file)
    with pytest.raises(SequenceError, match="cannot be read"):
        read_sequence(tmp_path / "nowhere.igs.mha")


def test_data_in_a_file_of_its_own(tmp_path: Path) -> None:
    file = mha(tmp_path / "a.igs.mhd", three_frames(), size="5 4 3", orientation="MF")
    file.write_bytes(file.read_bytes().replace(b"LOCAL", b"a.raw"))
    with pytest.raises(SequenceError, match=r"data file a\.raw cannot be read"):
        read_sequence(file)
    (tmp_path / "a.raw").write_bytes(bytes(range(60)))
    images = read_sequence(file).images
    assert images is not None
    assert images[2, 3, 4] == 59


@pytest.mark.parametrize("colour", [False, True])
def test_round_trip(tmp_path: Path, colour: bool) -> None:
    rng = np.random.default_rng(5)
    matrices = rng.normal(size=(4, 4, 4))
    matrices[:, 3] = (0, 0, 0, 1)
    statuses = (PoseStatus.OK, PoseStatus.OUT_OF_VIEW, PoseStatus.OK, PoseStatus.OK)
    matrices[1] = np.nan
    sequence = TrackedSequence(
        timestamps_s=np.array([0.1, 0.2, 1 / 3, 0.4]),
        transforms={"NeedleToTracker": TransformTrack("NeedleToTracker", matrices, statuses)},
        images=rng.integers(0, 255, (4, 6, 7, 3) if colour else (4, 6, 7)).astype(np.uint8),
        image_valid=np.array([True, True, False, True]),
        unfiltered_timestamps_s=np.array([0.11, 0.21, 0.31, 0.41]),
        fields={"FrameNumber": ("1", "2", "", "4")},
    )
    write_sequence(tmp_path / "a.igs.mha", sequence)
    again = read_sequence(tmp_path / "a.igs.mha")
    np.testing.assert_array_equal(again.timestamps_s, sequence.timestamps_s)
    np.testing.assert_array_equal(again.transforms["NeedleToTracker"].matrices, matrices)
    assert again.transforms["NeedleToTracker"].statuses == statuses
    np.testing.assert_array_equal(again.images, sequence.images)
    np.testing.assert_array_equal(again.image_valid, sequence.image_valid)
    assert again.fields == sequence.fields
    with pytest.raises(SequenceError, match=r"\.igs\.mha"):
        write_sequence(tmp_path / "a.nrrd", sequence)


def test_recorded_tracking(shared_data: Path) -> None:
    folder = shared_data / "plus" / "TestImages"
    sliding = read_sequence(folder / "SlidingProbeTrackingData.igs.mha")
    assert len(sliding) == 85
    assert sorted(sliding.transforms) == ["NeedleToTracker", "ProbeToTracker", "ReferenceToTracker"]
    assert all(t.valid.all() for t in sliding.transforms.values())
    np.testing.assert_allclose(sliding.timestamps_s[:2], [167.178, 167.678])
    np.testing.assert_allclose(
        sliding.transforms["NeedleToTracker"].matrices[0, :3, 3], (84, -7.193397998809815, -6.94658374786377)
    )
    calibration = read_sequence(folder / "ReferenceToRASCalibration.igs.mha")
    assert len(calibration) == 93
    assert calibration.images is None
    landmarks = read_sequence(folder / "EightLandmarkPointsTrackedForPhantomRegistration.igs.mha")
    assert len(landmarks) == 1000


def test_recorded_images(shared_data: Path) -> None:
    folder = shared_data / "plus" / "TestImages"
    sample = read_sequence(folder / "NrrdSample.igs.nrrd")
    assert sample.images is not None
    assert sample.images.shape == (1, 256, 256)
    assert any("no Timestamp" in w for w in sample.warnings)
    from_mha = read_sequence(folder / "NwirePhantomFreehand.igs.mha")
    from_nrrd = read_sequence(folder / "NwirePhantomFreehand.igs.nrrd")
    np.testing.assert_array_equal(from_mha.images, from_nrrd.images)
    np.testing.assert_array_equal(from_mha.timestamps_s, from_nrrd.timestamps_s)
    assert not from_mha.transforms["StylusToTracker"].valid.any()
    fcal = read_sequence(folder / "fCal_Test_Validation_3NWires.igs.mha")
    assert fcal.images is not None
    assert fcal.images.shape == (94, 616, 820)
    # Independent reader of the pixels (it knows nothing of the frames' fields).
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "fCal_Test_Validation_3NWires.igs.mha")))
    np.testing.assert_array_equal(fcal.images, pixels)
