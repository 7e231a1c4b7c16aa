"""Frame and transform names: any two legal frames survive the way to the wire and back."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nav.geometry.frames import FrameNameError, TransformName, check_frame_name

_LETTERS = string.ascii_letters + string.digits


def _legal(frame: str) -> bool:
    try:
        check_frame_name(frame)
    except FrameNameError:
        return False
    return True


frames = st.builds(
    lambda head, tail: head + tail, st.sampled_from(string.ascii_uppercase), st.text(alphabet=_LETTERS, max_size=12)
).filter(_legal)
# Names whose words are capitalised are the ones that snake case can carry without loss.
words = st.builds(lambda head, tail: head + tail, st.sampled_from("ABNRST"), st.text(alphabet="aelno12", max_size=6))
word_frames = st.lists(words, min_size=1, max_size=3).map("".join).filter(_legal)


@given(frames, frames)
def test_wire_name_parses_back(from_frame: str, to_frame: str) -> None:
    assume(from_frame != to_frame)
    name = TransformName.of(from_frame, to_frame)
    assert TransformName.parse(name.wire) == name
    assert str(name) == name.wire
    assert name.inverse.inverse == name


@given(word_frames, word_frames)
def test_code_name_parses_back_when_words_are_capitalised(from_frame: str, to_frame: str) -> None:
    assume(from_frame != to_frame)
    name = TransformName.of(from_frame, to_frame)
    parsed = TransformName.parse(name.code)
    # "ABe" is the words "A" and "Be": snake case keeps the letters and digits, and the code name is a fixed point.
    assert parsed.code == name.code or parsed.wire.lower() == name.wire.lower()
    assert parsed.from_frame.lower() == from_frame.lower()
    assert parsed.to_frame.lower() == to_frame.lower()


@given(frames)
def test_code_name_keeps_every_character(frame: str) -> None:
    assume(frame != "World")
    code = TransformName.of(frame, "World").code
    assert code.startswith("world_from_")
    assert code.removeprefix("world_from_").replace("_", "") == frame.lower()


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused_with_its_name(text: str) -> None:
    try:
        name = TransformName.parse(text)
    except FrameNameError as error:
        assert "frame" in str(error) or "transform" in str(error)  # noqa: PT017
    else:
        assert TransformName.parse(name.wire) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NeedleToReference", ("Needle", "Reference")),
        ("reference_from_needle", ("Needle", "Reference")),
        ("TestToolToTracker", ("TestTool", "Tracker")),
        ("ToolToTracker", ("Tool", "Tracker")),
        ("NeedleTipToNeedle", ("NeedleTip", "Needle")),
        ("needle_from_needle_tip", ("NeedleTip", "Needle")),
        ("Marker1To2ndFrame", None),
        ("ImageToProbe", ("Image", "Probe")),
    ],
)
def test_spellings(text: str, expected: tuple[str, str] | None) -> None:
    if expected is None:
        with pytest.raises(FrameNameError):
            TransformName.parse(text)
    else:
        assert TransformName.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Needle",
        "NeedleTo",
        "ToReference",
        "NeedleToNeedle",
        "AToBToC",
        "needleToReference",
        "NeedleToReference ",
        "NeedleToReference\n",
        "Nädle1ToReference",
        "reference_from_",
        "_from_needle",
        "Reference_from_Needle",
        "needle_from_needle",
        "NeedleToToReference",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(FrameNameError):
        TransformName.parse(text)


@pytest.mark.parametrize("frame", ["", "needle", "Needle Tip", "1Needle", "Needle-Tip", "NeedleToTip", "NeedleTo"])
def test_illegal_frames(frame: str) -> None:
    with pytest.raises(FrameNameError, match="frame name"):
        check_frame_name(frame)
