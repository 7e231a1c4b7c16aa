"""VIDEO as pictures: I420 by its planes; H.264 and VP9 with PyAV, or a clear message without it."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import decode, encode_content
from drivers.openigtlink.contents import VideoContent
from drivers.openigtlink.video_codecs import (
    VideoDecoders,
    VideoUnavailableError,
    i420_bitstream,
    i420_picture,
    i420_planes,
)
from drivers.openigtlink.wire import ContentError, EncodeError
from nav.runtime.messages import ImageMessage, UnusedMessage

ROWS, COLUMNS = 64, 96
YY, XX = np.mgrid[:ROWS, :COLUMNS]
COLOUR = np.stack([XX * 2, YY * 3, XX + YY], -1).astype(np.uint8)


def video(codec: str, bits: bytes, kind: int = 1, width: int = COLUMNS, height: int = ROWS) -> VideoContent:
    size = (width, height, 1)
    axes = np.diag([0.5, 0.25, 1.0])
    return VideoContent(codec, kind, 2, 1, size, axes, np.array([1.0, 2.0, 3.0]), (0, 0, 0), size, memoryview(bits))


def decoded(content: VideoContent, videos: VideoDecoders | None = None) -> Any:
    raw = encode_content("Endoscope", content)
    return decode(raw, source="s", sequence=1, arrival_ns=2, videos=videos)


def by_the_book(y: int, u: int, v: int) -> list[int]:
    """Red, green, blue of ITU-R BT.601 with the range of video, one pixel at a time."""
    c, d, e = 255 / 219 * (y - 16), 255 / 224 * (u - 128), 255 / 224 * (v - 128)
    rgb = (c + 1.402 * e, c - 0.344136 * d - 0.714136 * e, c + 1.772 * d)
    return [min(max(round(value), 0), 255) for value in rgb]


def test_i420_planes_lie_one_behind_the_other() -> None:
    y, u, v = i420_planes(video("I420", bytes(range(8)) + b"\x10\x20" + b"\x30\x40", width=4, height=2))
    assert u is not None
    assert v is not None
    assert (y.tolist(), u.tolist(), v.tolist()) == ([[0, 1, 2, 3], [4, 5, 6, 7]], [[16, 32]], [[48, 64]])


@pytest.mark.parametrize(
    "yuv", [(16, 128, 128), (235, 128, 128), (81, 90, 240), (145, 54, 34), (41, 240, 110), (16, 16, 240)]
)
def test_i420_in_colour_is_bt601(yuv: tuple[int, int, int]) -> None:
    y, u, v = yuv
    picture = i420_picture(video("I420", bytes([y] * 4 + [u, v]), width=2, height=2))
    assert picture.shape == (2, 2, 3)
    np.testing.assert_allclose(picture[0, 0].astype(int), by_the_book(*yuv), atol=2)


def test_a_colour_picture_survives_i420() -> None:
    bits, kind = i420_bitstream(COLOUR)
    message = decoded(video("I420", bits, kind))
    assert isinstance(message, ImageMessage)
    assert message.array.shape == (1, ROWS, COLUMNS, 3)
    assert np.abs(message.array[0].astype(int) - COLOUR).max() <= 6  # colour has half the resolution
    # The position is the centre, as in IMAGE.
    corner = np.array([1, 2, 3]) - (np.array([COLUMNS, ROWS, 1]) - 1) / 2 * (0.5, 0.25, 1)
    np.testing.assert_allclose(message.mm_from_index[:3, 3], corner)


def test_grey_keeps_its_values() -> None:
    grey = COLOUR[..., 0]
    bits, kind = i420_bitstream(grey)
    assert len(bits) == ROWS * COLUMNS * 3 // 2
    for content in (video("I420", bits, kind), video("I420", grey.tobytes(), kind)):
        message = decoded(content)
        assert isinstance(message, ImageMessage)
        np.testing.assert_array_equal(message.array, grey[np.newaxis])
    odd = np.arange(15, dtype=np.uint8).reshape(3, 5)
    for tail in (b"", bytes(7)):  # 3 x 5 x 3 / 2, rounded down, as the C++ library counts
        message = decoded(video("I420", odd.tobytes() + tail, 0x100, 5, 3))
        np.testing.assert_array_equal(message.array[0], odd)


@pytest.mark.parametrize(
    ("bits", "kind", "size", "limit"),
    [
        (bytes(11), 1, (4, 2), "12"),
        (bytes(8), 1, (4, 2), "12"),
        (bytes(9), 0x100, (4, 2), "8 or 12"),
        (bytes(13), 1, (3, 3), "an even width"),
        (b"", 1, (65535, 65535), "even"),
    ],
)
def test_i420_of_a_wrong_size_is_unused_with_the_reason(
    bits: bytes, kind: int, size: tuple[int, int], limit: str
) -> None:
    message = decoded(video("I420", bits, kind, *size))
    assert isinstance(message, UnusedMessage)
    assert "I420 frame" in message.problem
    assert limit in message.problem
    assert "byte 134" in message.problem


def test_pictures_that_i420_cannot_hold() -> None:
    for shape, dtype in (((3, 4), "u1"), ((4, 4, 4), "u1"), ((4, 4), "u2"), ((0, 4), "u1")):
        with pytest.raises(EncodeError, match="VIDEO"):
            i420_bitstream(np.zeros(shape, dtype))


def test_without_pyav_a_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    message = decoded(video("H264", b"bits"))
    assert isinstance(message, UnusedMessage)
    assert "ablation-nav[video]" in message.problem
    message = decoded(video("JPEG", b"bits"))
    assert "codec 'JPEG': known are I420, H264" in message.problem


# --------------------------------------------------------------------------------------------------------- with PyAV

CODECS = {
    "H264": ("libx264", {"preset": "ultrafast", "tune": "zerolatency"}),
    "VP90": ("libvpx-vp9", {"deadline": "realtime", "lag-in-frames": "0", "cpu-used": "8"}),
}


def frames(codec: str, count: int = 5) -> list[tuple[np.ndarray, VideoContent]]:
    """A moving picture and what an encoder makes of it, the first one a key frame."""
    av = pytest.importorskip("av", reason="the optional extra video is not installed")
    name, options = CODECS[codec]
    if name not in av.codecs_available:
        pytest.skip(f"this PyAV has no {name}")
    encoder = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = COLUMNS, ROWS, "yuv420p"
    encoder.time_base, encoder.bit_rate, encoder.options = Fraction(1, 30), 4_000_000, options
    out = []
    for n in range(count):
        picture = np.roll(COLOUR, 4 * n, axis=1)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts = n
        (packet,) = encoder.encode(frame)
        out.append((picture, video(codec, bytes(packet), 1 if packet.is_keyframe else 2)))
    assert [content.frame_type for _, content in out] == [1] + [2] * (count - 1)
    return out


@pytest.mark.parametrize("codec", CODECS)
def test_a_stream_of_frames(codec: str) -> None:
    videos = VideoDecoders()
    for picture, content in frames(codec):
        message = decoded(content, videos)
        assert isinstance(message, ImageMessage), message
        assert message.array.shape == (1, ROWS, COLUMNS, 3)
        assert np.abs(message.array[0].astype(int) - picture).mean() < 4


@pytest.mark.parametrize("codec", CODECS)
def test_after_a_lost_frame_nothing_is_shown_until_the_next_key_frame(codec: str) -> None:
    videos = VideoDecoders()
    (_, first), _, (_, third), _, _ = frames(codec)
    assert isinstance(decoded(first, videos), ImageMessage)
    videos.lost("Endoscope")
    message = decoded(third, videos)
    assert isinstance(message, UnusedMessage)
    assert "waits for a key frame" in message.problem
    assert isinstance(decoded(first, videos), ImageMessage)
    videos.lost()
    with pytest.raises(VideoUnavailableError, match="key frame"):
        videos.picture(third, "Endoscope")


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_or_mismatched_bitstream_is_named(codec: str) -> None:
    (_, first), *_ = frames(codec, 2)
    for content in (video(codec, b"\xff" * 40), video(codec, bytes(first.bitstream), width=COLUMNS * 2)):
        with pytest.raises((ContentError, VideoUnavailableError)):
            VideoDecoders().picture(content, "Endoscope")


def test_grey_h264_shows_the_brightness_as_it_was_sent() -> None:
    av = pytest.importorskip("av", reason="the optional extra video is not installed")
    name, options = CODECS["H264"]
    encoder = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = COLUMNS, ROWS, "yuv420p"
    encoder.time_base, encoder.bit_rate, encoder.options = Fraction(1, 30), 8_000_000, options
    grey = np.tile(np.linspace(0, 255, COLUMNS).astype(np.uint8), (ROWS, 1))
    planes = np.vstack([grey, np.full((ROWS // 2, COLUMNS), 128, np.uint8)])
    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    (packet,) = encoder.encode(frame)
    message = decoded(video("H264", bytes(packet), 0x100), VideoDecoders())
    assert isinstance(message, ImageMessage)
    assert message.array.shape == (1, ROWS, COLUMNS)
    assert np.abs(message.array[0].astype(int) - grey).mean() < 3
