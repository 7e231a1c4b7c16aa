"""The room configuration (``configs/rooms/*.toml``): streams, frames, calibrations, limits.

Everything a site edits is validated here, all mistakes at once, each with its path, its value and what is allowed
(`nav.config.load`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nav.config.network import NetworkText, is_loopback
from nav.config.simulation import SimulationConfig
from nav.geometry.frames import FrameNameError, TransformName
from nav.geometry.rigid import NotRigidError, PixelMap, Rigid

__all__ = [
    "ApplicatorChoice",
    "CalibrationConfig",
    "ImageStreamConfig",
    "LimitsConfig",
    "PrivacyConfig",
    "PublishConfig",
    "RoomConfig",
    "SourceConfig",
    "SubscriptionConfig",
    "ToolStreamConfig",
    "UncertaintyConfig",
]

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Matrix4 = Annotated[list[Annotated[list[float], Field(min_length=4, max_length=4)]], Field(min_length=4, max_length=4)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _transform_name(value: str) -> str:
    try:
        return TransformName.parse(value).wire
    except FrameNameError as error:
        raise ValueError(str(error)) from None


class _StreamConfig(_Model):
    """Freshness limits of one stream, from its nominal rate unless given."""

    device: str = Field(min_length=1, max_length=64, description="device name as on the wire (or the TDATA tool name)")
    nominal_hz: Positive = Field(60.0, description="rate that the sender states; the limits below follow from it")
    max_gap_ms: Positive | None = Field(
        None, description="poses further apart are never bridged; 3 periods unless given"
    )
    stale_ms: Positive | None = Field(None, description="age that is marked; 100 ms or 3 periods unless given")
    lost_ms: Positive | None = Field(
        None,
        description="age that blanks; unless given 250 ms for a tool (900 ms with hold_last), 250 ms or 5 periods for "
        "an image",
    )

    @property
    def period_ms(self) -> float:
        """Nominal sample period."""
        return 1000.0 / self.nominal_hz

    @property
    def gap_limit_ms(self) -> float:
        """Neighbours further apart are never bridged: 3 sample periods unless given."""
        return self.max_gap_ms or 3.0 * self.period_ms

    @property
    def stale_limit_ms(self) -> float:
        """Age at which the stream is marked stale: 100 ms, or 3 periods of a slower stream."""
        return self.stale_ms or max(100.0, 3.0 * self.period_ms)

    @property
    def lost_limit_ms(self) -> float:
        """Age at which its numbers are taken away: 250 ms, or 5 periods of a slower stream."""
        return self.lost_ms or max(250.0, 5.0 * self.period_ms)


#: No number survives its pose by more than this, unless the room says so for the tool.
TOOL_LOST_MS = 250.0
#: Between two poses and a little delay a tool must not be called lost: slower ones than this need their own limit.
TOOL_PERIODS = 2.0
#: A tool that is sent only on change is as fresh as its link: keep-alives come every 250 ms, 900 ms are silence.
HELD_STALE_MS, HELD_LOST_MS = 500.0, 900.0


class ToolStreamConfig(_StreamConfig):
    """A tool: which device name carries which transform."""

    transform: str = Field(description="what the pose maps, from tool to tracker, such as NeedleToTracker")
    hold_last: bool = Field(False, description="the sender sends only on change; its heartbeat is then what ages")
    identity_is_lost: bool = Field(
        True,
        description="an exact identity without a status means not seen, as PLUS sends it (not with hold_last); false: "
        "it is a pose",
    )

    _check = field_validator("transform")(_transform_name)

    @property
    def stale_limit_ms(self) -> float:
        """Age at which the tool is marked stale: 100 ms, or 3 periods of a slower one, before it is lost."""
        usual = HELD_STALE_MS if self.hold_last else max(100.0, 3.0 * self.period_ms)
        return self.stale_ms or min(usual, 0.8 * self.lost_limit_ms)

    @property
    def lost_limit_ms(self) -> float:
        """Age at which the tool's numbers are taken away."""
        return self.lost_ms or (HELD_LOST_MS if self.hold_last else TOOL_LOST_MS)

    @model_validator(mode="after")
    def _slow_tools_say_when_lost(self) -> Self:
        if self.lost_ms is None and not self.hold_last and TOOL_PERIODS * self.period_ms > TOOL_LOST_MS:
            raise ValueError(
                f"nominal_hz {self.nominal_hz:g}: numbers are taken away {TOOL_LOST_MS:g} ms after their pose, less "
                f"than {TOOL_PERIODS:g} periods of this tool ({TOOL_PERIODS * self.period_ms:.0f} ms); state lost_ms "
                "(and stale_ms) if a slower tool is acceptable"
            )
        return self


class ImageStreamConfig(_StreamConfig):
    """An image stream and how it is placed in space."""

    name: str = Field("ultrasound", description="how lamps, messages and summary call the stream")
    role: Literal["ultrasound", "fluoro"] = Field("ultrasound", description="how it is shown")
    placed_by: Literal["calibration", "header"] = Field(
        "calibration",
        description="calibration: by the pixel map in [[calibrations]]; header: by the IMAGE's own matrix",
    )
    frame: str = Field("Image", description="pixel frame (calibration), or the frame that the IMAGE leads to (header)")
    left_handed: bool = Field(
        False, description="the sender's image axes are left-handed and have been checked: not marked as mirrored"
    )
    nominal_hz: Positive = Field(30.0, description="rate that the sender states; the limits follow from it")


class SubscriptionConfig(_Model):
    """Tracking data that a server sends only when asked to (STT_TDATA, STT_QTDATA)."""

    kind: Literal["tdata", "qtdata"] = Field("tdata", description="as matrices (tdata) or quaternions (qtdata)")
    interval_ms: int = Field(
        20, ge=0, le=60_000, description="smallest interval between two messages; 0: as fast as it can"
    )
    coordinates: str = Field(
        "", max_length=32, pattern=r"^[ -~]*$", description="coordinate system asked for; empty: the server's own"
    )
    device: str = Field(
        "", max_length=20, pattern=r"^[ -~]*$", description="device name of the request; empty: the source's"
    )


class SourceConfig(_Model):
    """One connection."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="how messages, recording and summary call it")
    driver: str = Field("openigtlink", description="kind of source; `ablation-nav doctor` lists what is installed")
    host: str = Field("127.0.0.1", description="address of the server")
    port: int = Field(18944, ge=1, le=65535, description="port of the server")
    path: str = Field("", description="file, for drivers that read one")
    stamps: Literal["sender", "arrival"] = Field("sender", description="which clock tells when the data was acquired")
    fixed_delay_ms: float = Field(
        0.0,
        ge=-500,
        le=2000,
        description="smallest transport delay, from temporal calibration",
    )
    offset_window_s: Positive = Field(10.0, description="the smallest clock offset is looked for in this long a window")
    reconnect: bool = Field(
        True,
        description="connect again, with growing pauses, when the link is lost; false: only when the operator asks "
        "(servers that want a confirmation at every connection)",
    )
    silent_after_s: Positive = Field(0.9, description="no byte for this long: the link is called silent")
    reopen_after_s: Positive = Field(
        15.0, description="no byte for this long: the connection is closed and opened again (not with hold_last)"
    )
    header_version: Literal[1, 2] = Field(1, description="2: sends one version 2 message, so that PLUS sends status")
    client_info: bool = Field(
        False, description="asks a PLUS server for the tools and images below, in version 2 (CLIENTINFO)"
    )
    subscribe: tuple[SubscriptionConfig, ...] = Field(
        (), description="tracking data to ask for, for servers that send it only when asked to"
    )
    origin_is_corner: bool = Field(False, description="the sender puts an image's origin at its corner, not its centre")
    coordinate_override: Literal["", "ras", "lps"] = Field("", description="for senders that declare the wrong axes")
    endian_override: Literal["", "big", "little"] = Field(
        "", description="for senders that declare the wrong byte order"
    )
    tools: tuple[ToolStreamConfig, ...] = Field((), description="pose streams of this source")
    images: tuple[ImageStreamConfig, ...] = Field((), description="image streams of this source")
    footswitch: str = Field("", description="device name of STRING messages that carry operator actions; empty: none")


class CalibrationConfig(_Model):
    """A static edge: tool tip, image calibration, or an assumed registration."""

    name: str = Field(description="what it maps, such as NeedleTipToNeedle")
    matrix: Matrix4 = Field(description="row-major 4x4, mm; pixel maps may scale")
    kind: Literal["rigid", "pixels"] = Field("rigid", description="pixels: takes pixel indices to mm, and may scale")
    provenance: Literal["calibrated", "nominal", "assumed"] = Field(
        "calibrated", description="where it comes from; assumed degrades the guidance and is said on the screen"
    )
    sigma_mm: NonNegative | None = Field(None, description="3-D rms error of the origin, mm, if known")
    date: str = Field("", description="when it was made, for the person")

    _check = field_validator("name")(_transform_name)

    @model_validator(mode="after")
    def _is_legal(self) -> Self:
        try:
            if self.kind == "rigid":
                self.rigid()
            else:
                self.pixel_map()
        except NotRigidError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def frames(self) -> TransformName:
        """From which frame to which."""
        return TransformName.parse(self.name)

    def rigid(self) -> Rigid:
        """The transform as `Rigid`."""
        return Rigid.from_matrix(self.matrix, self.name)

    def pixel_map(self) -> PixelMap:
        """The transform as `PixelMap`."""
        return PixelMap.from_matrix(self.matrix, self.name)


class UncertaintyConfig(_Model):
    """Error sources that a person or a calibration states; each is per axis unless said otherwise."""

    tracker_sigma_mm: NonNegative = Field(0.15, description="position noise of the tracker per axis")
    tracker_sigma_deg: NonNegative = Field(0.1, description="rotation noise of the tracker per axis")
    landmark_rms_mm: Positive = Field(1.0, description="3-D rms of touching one landmark (prior; FRE refines it)")
    tip_calibration_rms_mm: NonNegative = Field(0.0, description="3-D rms of the needle tip's calibration")
    ct_landmark_rms_mm: NonNegative = Field(0.0, description="3-D rms of placing one landmark in the CT")
    hand_speed_mm_s: NonNegative = Field(
        5.0, description="rms speed per axis of a hand that holds still (tremor of 0.1 mm at 8 Hz); times the latency"
    )
    max_tre_mm: Positive = Field(3.0, description="above this the registration is called poor: degraded")
    max_fre_mm: Positive = Field(3.0, description="above this residual the registration is called poor: degraded")


class LimitsConfig(_Model):
    """Limits of the whole chain."""

    latency_warn_ms: Positive = Field(100.0, description="from sensor to screen; above this: degraded")
    registration_age_warn_min: Positive = Field(60.0, description="a registration older than this: degraded")
    margin_mm: Positive = Field(5.0, description="wanted margin around the tumour")


class PrivacyConfig(_Model):
    """What may leave the program. All off by default."""

    show_patient: bool = Field(False, description="patient name and identifiers on the screen")
    record_patient: bool = Field(False, description="patient name and identifiers in recordings and reports")


class PublishConfig(_Model):
    """What is sent on to Slicer and other programs over OpenIGTLink (docs/publishing.md); absent: nothing."""

    host: str = Field("127.0.0.1", description="address to listen on; one that the network can reach needs allow")
    port: int = Field(18950, ge=0, le=65535, description="port to listen on; 0: any that is free")
    allow: tuple[NetworkText, ...] = Field(
        (), description="networks that may connect, such as 192.0.2.0/24, beside this computer"
    )
    max_clients: int = Field(8, ge=1, le=64, description="further clients are turned away")
    zone_hz: float = Field(10.0, gt=0, le=60, description="most updates of the zone's surface a second")
    margin_hz: float = Field(10.0, gt=0, le=60, description="most updates of the margin's text a second")
    commands: bool = Field(
        True, description="clients may start and stop recordings, ask for the state, reconnect a source"
    )

    @model_validator(mode="after")
    def _closed_unless_said(self) -> Self:
        if not self.allow and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from the network: name the networks that may connect in allow, "
                'such as allow = ["192.0.2.0/24"], or use host = "127.0.0.1"'
            )
        return self


class ApplicatorChoice(_Model):
    """Applicator, power and time at start."""

    name: str = Field("emprint", description="name of a file in configs/applicators, without .toml")
    power_w: Positive = Field(100.0, description="power; refused outside the published chart")
    time_s: Positive = Field(600.0, description="time; refused outside the published chart")
    tissue: str = Field(
        "", description="compute zones for this tissue, a file in configs/tissues without .toml; empty: the chart alone"
    )


class RoomConfig(_Model):
    """One procedure room."""

    name: str = Field("room", description="how the recording and the summary call the room")
    needle_frame: str = Field("NeedleTip", description="frame at the needle's tip, +Z in the direction of advance")
    stylus_frame: str = Field("StylusTip", description="frame at the tip of the stylus that touches landmarks")
    reference_frame: str = Field("Reference", description="frame fixed to the patient; registrations start here")
    ct_frame: str = Field("Ras", description="frame of the CT")
    respiration: Literal["none", "declared_hold"] = Field(
        "none", description="declared_hold: guidance is degraded unless a breath-hold is declared"
    )
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="connections")
    calibrations: tuple[CalibrationConfig, ...] = Field((), description="static transforms")
    uncertainty: UncertaintyConfig = Field(UncertaintyConfig(), description="stated error sources")
    limits: LimitsConfig = Field(LimitsConfig(), description="limits of the whole chain")
    privacy: PrivacyConfig = Field(PrivacyConfig(), description="what may leave the program")
    applicator: ApplicatorChoice = Field(ApplicatorChoice(), description="applicator at start")
    publish: PublishConfig | None = Field(None, description="what is sent on to other programs; absent: nothing")
    simulation: SimulationConfig | None = Field(None, description="what the simulated room plays; only there")

    def rigid_calibration(self, *frames: str) -> CalibrationConfig | None:
        """The first rigid calibration that holds all of ``frames``, in either direction."""
        wanted = set(frames)
        return next((c for c in self.calibrations if c.kind == "rigid" and wanted <= set(c.frames)), None)

    def marker_of(self, tip: str) -> str | None:
        """The frame that the calibration of a tip joins it to; None when the tracker reports the tip itself."""
        calibration = self.rigid_calibration(tip)
        return None if calibration is None else next(f for f in calibration.frames if f != tip)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [s.name for s in self.sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"source names must differ; given twice: {', '.join(twice)}")
        edges = [t.transform for s in self.sources for t in s.tools]
        twice = sorted({n for n in edges if edges.count(n) > 1})
        if twice:
            raise ValueError(f"a transform may come from one stream only; given twice: {', '.join(twice)}")
        return self
