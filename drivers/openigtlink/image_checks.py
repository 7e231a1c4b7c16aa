"""What looks wrong in an IMAGE that can be read: mirrored, without a centre, corner for centre, byte order, metres.

`check_image` looks at one message alone; the codec hands its warnings on, so that they degrade the guidance that rests
on the picture, live and in a replay alike. All of these are judgements on what is usual, not proofs: the text says what
was seen, and a person decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from drivers.openigtlink.contents import SCALAR_TYPES, ImageContent
from nav.config.room import ImageStreamConfig, SourceConfig
from nav.guidance.health import StreamFinding

__all__ = ["Finding", "check_image", "image_warnings"]

#: Finer pixels than this are given in metres; coarser ones than the second come from no clinical scanner.
FINEST_PIXEL_MM, COARSEST_PIXEL_MM = 0.01, 50.0
#: Share of the field of view within which a position counts as "at the middle" or "at the corner" of a scan.
NEAR = 0.1
#: The wrong byte order makes neighbouring voxels differ at least so many times more.
BYTE_ORDER_RATIO = 4.0
#: Voxels looked at for the byte order: this many runs of this length.
ORDER_RUNS, ORDER_LENGTH = 8, 512


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that looks wrong.

    Attributes
    ----------
    code : str
        Stable name, such as ``image_mirrored``.
    device : str
        Device name as on the wire (the tool's name in TDATA); empty: the whole sender.
    text, value, limit, what_to_do : str
        What was seen, its newest value, what is usual, and what the person does.
    severity : str
        ``warning``: numbers or pictures may be wrong. ``note``: worth knowing.
    count : int
        How often it was seen.
    by_every_item : bool
        It says something of the sender only when every message of the device has it.
    """

    code: str
    device: str
    text: str
    value: str
    limit: str
    what_to_do: str
    severity: Literal["warning", "note"] = "warning"
    count: int = 1
    by_every_item: bool = False

    def sentence(self) -> str:
        """All of it in one line."""
        where = f"{self.device}: " if self.device else ""
        return f"{where}{self.text} ({self.value}; limit: {self.limit}). {self.what_to_do}"


def check_image(
    content: ImageContent, device: str, options: SourceConfig | None = None, stream: ImageStreamConfig | None = None
) -> list[Finding]:
    """What looks wrong in one IMAGE, by its own header and voxels.

    Parameters
    ----------
    content : ImageContent
        As on the wire.
    device : str
        For the findings.
    options : SourceConfig or None
        The overrides in force.
    stream : ImageStreamConfig or None
        How the image is placed; by a calibration: its header's place means nothing and is not judged.
    """
    found = _byte_order(content, device, options)
    if stream is None or stream.placed_by == "header":
        found += _place(content, device, options, left_handed=stream is not None and stream.left_handed)
        found += _flag(content, device, options)
    return found


def image_warnings(findings: list[Finding]) -> tuple[StreamFinding, ...]:
    """The warnings among ``findings`` as guidance takes them."""
    return tuple(
        StreamFinding(f.code, f.text, f.value, f.limit, f.what_to_do, f.by_every_item)
        for f in findings
        if f.severity == "warning"
    )


def _place(content: ImageContent, device: str, options: SourceConfig | None, *, left_handed: bool) -> list[Finding]:
    axes, position, size = content.axes, content.position, content.size
    if not (np.isfinite(axes).all() and np.isfinite(position).all()):
        return []
    spacing = np.sqrt((axes * axes).sum(axis=0))
    wide = [n for n in range(3) if size[n] > 1]
    found = []
    worst = [float(spacing[n]) for n in wide if not FINEST_PIXEL_MM <= spacing[n] <= COARSEST_PIXEL_MM]
    if worst:
        small = worst[0] < FINEST_PIXEL_MM
        found.append(
            Finding(
                "image_spacing",
                device,
                "pixels finer than any scanner's: metres for millimetres?"
                if small
                else "pixels coarser than any scanner's",
                f"{worst[0]:.3g} mm",
                f"{FINEST_PIXEL_MM:g} to {COARSEST_PIXEL_MM:g} mm",
                "Let the sender send mm",
            )
        )
    determinant = float(np.linalg.det(axes))
    volume = float(spacing.prod())
    if volume > 0.0 and determinant < -1e-6 * volume and not left_handed:
        found.append(
            Finding(
                "image_mirrored",
                device,
                "left-handed axes: the picture is mirrored, or its slices run backwards",
                f"determinant {determinant:.3g}",
                "positive",
                "Check left and right on an object; if they are right, set left_handed = true for this image",
            )
        )
    if not wide:
        return found
    corner = options is not None and options.origin_is_corner
    if not position.any():
        if not corner:
            found.append(
                Finding(
                    "image_without_centre",
                    device,
                    "position exactly 0, 0, 0: the sender leaves out the centre, or means its corner",
                    "0, 0, 0",
                    "the centre of the image in mm",
                    "If its first voxel is at the origin, set origin_is_corner = true; else let the sender place it",
                    by_every_item=True,
                )
            )
        return found
    # Where the frame's origin lies in a scan is a habit, not a law (isocentre and image centre are close): a note. Live
    # guidance knows where the patient is (`nav.runtime.image_place`).
    planar = [n for n in wide if n < 2]
    if len(planar) < 2 or not all(spacing[n] > 0.0 for n in planar):
        return found
    extent = [float(spacing[n]) * (size[n] - 1) for n in planar]
    along = [float(position @ axes[:, n]) / float(spacing[n]) / e for n, e in zip(planar, extent, strict=True)]
    value = " x ".join(f"{a:+.2f}" for a in along) + " fields of view from the origin"
    if not corner and all(abs(a + 0.5) < NEAR for a in along):
        found.append(
            Finding(
                "image_corner_as_centre",
                device,
                "the position lies half the image away from the origin along both axes: a corner sent as the centre?",
                value,
                f"not within {NEAR:g} of -0.50 on both axes",
                "Check the outline against the CT; if it is off by half its size, set origin_is_corner = true",
                "note",
            )
        )
    elif corner and all(abs(a) < NEAR for a in along):
        found.append(
            Finding(
                "image_centre_as_corner",
                device,
                "origin_is_corner is set, but the position lies at the origin of the scan like a centre",
                value,
                f"not within {NEAR:g} of 0.00 on both axes",
                "Check the outline against the CT; if it is off by half its size, remove origin_is_corner",
                "note",
            )
        )
    return found


def _flag(content: ImageContent, device: str, options: SourceConfig | None) -> list[Finding]:
    flag = {1: "ras", 2: "lps"}.get(content.coordinate, "")
    override = options.coordinate_override if options is not None else ""
    if not flag:
        return [
            Finding(
                "image_axes_unknown",
                device,
                "the RAS/LPS flag is neither RAS nor LPS" + (f"; taken as {override.upper()}" if override else ""),
                str(content.coordinate),
                "1 (RAS) or 2 (LPS)",
                "Ask the sender's maker which axes it means (before 2013, 0 meant LPS), and set coordinate_override",
                "note" if override else "warning",
            )
        ]
    if override and override != flag:
        return [
            Finding(
                "image_axes_override",
                device,
                f"the sender says {flag.upper()}, coordinate_override says {override.upper()}",
                flag.upper(),
                override.upper(),
                "Check left and right on an object; if they are wrong, remove coordinate_override",
                "note",
            )
        ]
    return []


def _byte_order(content: ImageContent, device: str, options: SourceConfig | None) -> list[Finding]:
    dtype = np.dtype(SCALAR_TYPES.get(content.scalar, "u1"))
    if dtype.kind not in "iu" or dtype.itemsize < 2:
        return []
    override = options.endian_override if options is not None else ""
    order = override or {1: "big", 2: "little"}.get(content.endian, "")
    if not order:
        return []
    little = _roughness(content, dtype.newbyteorder("<"))
    big = _roughness(content, dtype.newbyteorder(">"))
    used, other = (little, big) if order == "little" else (big, little)
    if not used > BYTE_ORDER_RATIO * other:
        return []
    better = "big" if order == "little" else "little"
    return [
        Finding(
            "image_byte_order",
            device,
            f"voxels read as {order} endian jump {used / max(other, 1e-3):.0f} times as much from one to the next as "
            f"read as {better} endian" + (" (endian_override is set)" if override else ""),
            f"mean step {used:.3g} against {other:.3g}",
            f"at most {BYTE_ORDER_RATIO:g} times",
            f'Set endian_override = "{better}"' if not override else "Remove or change endian_override",
        )
    ]


def _roughness(content: ImageContent, dtype: np.dtype[np.generic]) -> float:
    """Mean absolute step between neighbouring voxels, over a few runs spread through the image."""
    values = np.frombuffer(content.pixels, dtype)
    lag = content.components
    run = ORDER_LENGTH * lag
    if values.size <= ORDER_RUNS * run:
        sample = values.astype(np.float64)
        return float(np.abs(sample[lag:] - sample[:-lag]).mean()) if sample.size > lag else 0.0
    stride = values.size // ORDER_RUNS
    sample = values[: stride * ORDER_RUNS].reshape(ORDER_RUNS, stride)[:, :run].astype(np.float64)
    return float(np.abs(sample[:, lag:] - sample[:, :-lag]).mean())
