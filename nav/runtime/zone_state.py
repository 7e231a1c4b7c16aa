"""Which zone stands on the needle: chart, computed around it, or computed in the patient; and a running ablation.

Computed zones come from elsewhere (`nav.runtime.zone_worker`) and are taken over between two ticks. `request` says what
is wanted now; a result that answers another request is dropped. So a zone of tier 2 holds at the pose for which it was
computed, within `STILL_MM` and `STILL_DEG`, and gives way to tier 1 as soon as the needle leaves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nav.ablation.applicators import Applicator, ChartRangeError, load_applicator, place_zone
from nav.ablation.growth import ZoneGrowth
from nav.ablation.needle_zone import NeedleShape
from nav.ablation.prediction import Band, place_shape
from nav.ablation.thermal import Tissue, load_tissue
from nav.ablation.vessel_cut import VesselWalls, cut_zone
from nav.ablation.zone import EllipsoidZone, NeedleZone, Zone, ZoneUnion
from nav.config.load import ConfigError
from nav.geometry.rigid import Rigid
from nav.runtime.predicted_zones import BoxPrediction, NeedlePrediction, Prediction, ZoneRequest

__all__ = ["AblationTimer", "MadeZone", "PlacedZone", "ZoneSetting", "ZoneState"]

#: A needle that stays within this of a pose ...
STILL_MM, STILL_DEG = 1.5, 1.5
#: ... for this long is worth a zone of tier 2, which then holds for as long as it stays there.
STILL_NS = 1_000_000_000
#: An ablation's zone is kept only if the needle was seen this recently when it ended: else nobody knows where it is.
SEEN_NS = 2_000_000_000
#: The zone made so far is worked out anew this often.
GROWTH_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class ZoneSetting:
    """What the operator chose: ``device`` is the applicator's name as shown. ``tissue`` empty: the chart alone.

    ``place_assumed``: no source says where along the needle the device's zone lies.
    """

    applicator: str
    device: str
    power_w: float
    time_s: float
    tissue: str
    place_assumed: bool = False


@dataclass(frozen=True, slots=True)
class AblationTimer:
    """A running or ended ablation, as the operator declared it.

    Attributes
    ----------
    elapsed_s : float
        Since it began; stands still once it ended.
    time_s : float
        What was planned.
    running : bool
    """

    elapsed_s: float
    time_s: float
    running: bool


@dataclass(frozen=True, slots=True, eq=False)
class MadeZone:
    """What an ablation that ended has killed, where the needle was seen last (CT space), and its band."""

    zone: EllipsoidZone | NeedleZone
    ras_from_tip: Rigid
    band: Band | None


@dataclass(frozen=True, slots=True, eq=False)
class PlacedZone:
    """The zone at one needle pose.

    Attributes
    ----------
    zone : Zone
        At the end of the heating; with ablations made before, the union with theirs (this needle's last).
    band : Band or None
        How far its surface may lie from there, as far as perfusion, power and model are known. None for a chart, which
        states no error of its own.
    inner, outer : NeedleZone or None
        The band's two surfaces on the needle.
    grown : NeedleZone or None
        What a running ablation has killed so far; None without one, before anything is certain, and for a chart.
    made : tuple of MadeZone
        Of ablations that ended.
    off : (6,) float64 or None
        How far the needle lies from where ``zone`` was computed, of tier 2: tip, mm, and turn, rad, along RAS.
    """

    zone: Zone
    band: Band | None = None
    inner: NeedleZone | None = None
    outer: NeedleZone | None = None
    grown: NeedleZone | None = None
    made: tuple[MadeZone, ...] = ()
    off: NDArray[np.float64] | None = None


class ZoneState:
    """The choice of applicator and tissue, the zones computed for it, and the ablation's timer.

    Parameters
    ----------
    applicator, power_w, time_s, tissue
        As `choose`.
    """

    def __init__(self, applicator: str, power_w: float, time_s: float, tissue: str) -> None:
        #: Counts whatever changes the zone of an unmoved needle, tier 2 left out.
        self.generation = 0
        self._case = 0
        self._walls: VesselWalls | None = None
        self._started_ns = self._stopped_ns = 0
        self._seen: tuple[int, Rigid] | None = None
        #: Ablations that ended.
        self.made: tuple[MadeZone, ...] = ()
        self.choose(applicator, power_w, time_s, tissue)

    def choose(self, name: str, power_w: float, time_s: float, tissue: str) -> str:
        """Take another applicator, setting or tissue; returns what is wrong with it or to be known of it."""
        if self._started_ns and not self._stopped_ns:
            return "applicator: an ablation is running; stop it first"
        self._forget()
        self._started_ns = self._stopped_ns = 0
        self._applicator: Applicator | None = None
        self._tissue: Tissue | None = None
        self.setting: ZoneSetting | None = None
        self.text, self.problem = "", ""
        try:
            applicator = load_applicator(name)
            applicator.size(power_w, time_s)
            found = load_tissue(tissue) if tissue else None
        except (ChartRangeError, ConfigError, LookupError) as error:
            self.problem = str(error)
            return self.problem
        self._applicator = applicator
        self.setting = ZoneSetting(name, applicator.name, power_w, time_s, tissue, applicator.doubt is not None)
        self.text = f"{applicator.name} {applicator.setting(power_w)} {time_s:g} s"
        if found is None:
            return applicator.doubt or ""
        if applicator.heating is None:
            return f"{applicator.name}: its file has no [heating]; the zone is the chart's, not a prediction"
        self._tissue = found
        fitted = load_tissue(applicator.heating.tissue).name
        if fitted != found.name:
            return f"{applicator.name} was fitted in {fitted}: how well that carries over to {found.name} is not known"
        return applicator.doubt or ""

    def _forget(self) -> None:
        """No computed zone stands any more."""
        self.generation += 1
        self._near: NeedlePrediction | None = None
        self._grown: tuple[int, NeedleShape | None] | None = None
        self._forget_box()

    def _forget_box(self) -> None:
        self._box: BoxPrediction | None = None
        self._anchor: Rigid | None = None
        self._anchor_ns = 0
        self._box_wanted: ZoneRequest | None = None

    def change_case(self, generation: int, walls: VesselWalls | None) -> None:
        """Another case: its vessels count from now on."""
        self._case, self._walls = generation, walls
        self.made = ()
        self.generation += 1
        self._forget_box()

    # -- computed zones ------------------------------------------------------------------------------------------

    @property
    def request(self) -> ZoneRequest | None:
        """What should be computed now, None when nothing is missing."""
        setting = self.setting
        if setting is None or self._tissue is None:
            return None
        if self._near is None:
            return ZoneRequest(1, setting.applicator, setting.power_w, setting.time_s, setting.tissue)
        return None if self._box is not None else self._box_wanted

    def take(self, prediction: Prediction) -> bool:
        """Take a result over; False when what it answers is not wanted any more."""
        if prediction.request != self.request:
            return False
        if isinstance(prediction, NeedlePrediction):
            self._near = prediction
            self.generation += 1
        else:
            self._box = prediction
        return True

    def _follow(self, pose: Rigid, now_ns: int, worthwhile: bool) -> None:
        """Want a zone of tier 2 where the needle stays; drop it when the needle leaves.

        After an ablation there is none: it would have to begin with the tissue as that one left it.
        """
        setting = self.setting
        if (
            self.made
            or setting is None
            or self._near is None
            or self._near.growth.whole.is_empty
            or self._walls is None
        ):
            return
        if self._anchor is None or not _is_near(pose, self._anchor):
            self._forget_box()
            self._anchor, self._anchor_ns = pose, now_ns
        elif worthwhile and self._box_wanted is None and now_ns - self._anchor_ns >= STILL_NS:
            self._box_wanted = ZoneRequest(
                2, setting.applicator, setting.power_w, setting.time_s, setting.tissue, self._case,
                tuple(self._anchor.translation.tolist()), tuple(self._anchor.rotation[:, 2].tolist()),
            )  # fmt: skip

    # -- a running ablation --------------------------------------------------------------------------------------

    def start(self, now_ns: int) -> str:
        """The power went on; returns why that cannot be followed, or nothing."""
        if self._applicator is None:
            return "ablation: choose an applicator first"
        if self._started_ns and not self._stopped_ns:
            return "ablation: one is running; stop it first"
        self._started_ns, self._stopped_ns, self._seen = now_ns, 0, None
        return ""

    def stop(self, now_ns: int) -> str:
        """The power went off."""
        if not self._started_ns or self._stopped_ns:
            return "ablation: none is running"
        self._stopped_ns = now_ns
        if self._seen is None or now_ns - self._seen[0] > SEEN_NS:
            return "ablation: the needle was not seen when it ended, so its zone is not kept"
        zone = self._made_at(self._seen[1], (now_ns - self._started_ns) / 1e9)
        if zone is None:
            return "ablation: nothing is certain to be killed in so short a time; no zone is kept"
        band = None if isinstance(zone, EllipsoidZone) or self._near is None else self._near.band
        self.made = (*self.made, MadeZone(zone, self._seen[1], band))
        return ""

    def discard(self) -> str:
        """Forget the zones of the ablations made so far; returns what was done."""
        count, self.made = len(self.made), ()
        if not self._started_ns or self._stopped_ns:
            self._started_ns = self._stopped_ns = 0
        return f"{count} ablation(s) discarded" if count else "ablation: none was made"

    def _made_at(self, pose: Rigid, elapsed_s: float) -> EllipsoidZone | NeedleZone | None:
        """What an ablation of that length has killed; of a chart only what it holds."""
        applicator, setting, near, tissue = self._applicator, self.setting, self._near, self._tissue
        if applicator is None or setting is None:
            return None
        if near is None or tissue is None:
            try:
                return place_zone(applicator, setting.power_w, min(elapsed_s, setting.time_s), pose)
            except ChartRangeError:
                return None
        shape = near.growth.at(elapsed_s)
        return None if shape is None or shape.is_empty else self._put(shape, applicator, tissue, pose)

    def timer(self, now_ns: int) -> AblationTimer | None:
        """The ablation that was declared last; None before any."""
        if not self._started_ns or self.setting is None:
            return None
        until_ns = self._stopped_ns or now_ns
        return AblationTimer((until_ns - self._started_ns) / 1e9, self.setting.time_s, not self._stopped_ns)

    # -- on the needle -------------------------------------------------------------------------------------------

    def at(self, pose: Rigid, now_ns: int, *, worthwhile: bool = True) -> PlacedZone | None:
        """The zone on a needle; None without a usable choice. ``worthwhile`` False: none of tier 2 is wanted here."""
        self._follow(pose, now_ns, worthwhile)
        placed = self.planned(pose)
        if placed is None:
            return None
        if self._started_ns and not self._stopped_ns:
            self._seen = (now_ns, pose)
        zone, off = placed.zone, None
        if self.made and isinstance(zone, EllipsoidZone | NeedleZone):
            zone = ZoneUnion((*(one.zone for one in self.made), zone))
        elif self._box is not None and self._anchor is not None:
            zone, off = self._box.zone, _apart(pose, self._anchor)
        grown = None if self._near is None else self._grown_at(self._near.growth, pose, now_ns)
        return replace(placed, zone=zone, grown=grown, made=self.made, off=off)

    def _grown_at(self, growth: ZoneGrowth, pose: Rigid, now_ns: int) -> NeedleZone | None:
        """What a declared ablation has killed by now."""
        timer, applicator, tissue = self.timer(now_ns), self._applicator, self._tissue
        if timer is None or not timer.running or applicator is None or tissue is None:
            return None
        step = math.floor(timer.elapsed_s / GROWTH_STEP_S)
        if self._grown is None or self._grown[0] != step:
            self._grown = (step, growth.at(step * GROWTH_STEP_S))
        shape = self._grown[1]
        return None if shape is None or shape.is_empty else self._put(shape, applicator, tissue, pose)

    def planned(self, pose: Rigid) -> PlacedZone | None:
        """The zone of a needle that is not there yet: of tier 1, or the chart's; None without a usable choice."""
        applicator, setting, near, tissue = self._applicator, self.setting, self._near, self._tissue
        if applicator is None or setting is None:
            return None
        if near is None or tissue is None:
            return PlacedZone(place_zone(applicator, setting.power_w, setting.time_s, pose))
        zone, band = self._put(near.growth.whole, applicator, tissue, pose), near.band
        if band is None:
            return PlacedZone(zone)
        inner, outer = (self._beside(zone, shape) for shape in (band.inner, band.outer))
        return PlacedZone(zone, band, inner, outer)

    def _beside(self, zone: NeedleZone, shape: NeedleShape) -> NeedleZone | None:
        """The band's surface, drawn in with the zone: as much nearer to the needle, or farther from it."""
        if shape.is_empty:
            return None
        cut = zone.cut
        if cut is not None:
            nearer_mm = 0.5 * (zone.shape.short_mm - shape.short_mm)
            cut = replace(cut, slack_mm=cut.slack_mm + nearer_mm)
        return replace(zone, shape=shape, cut=cut)

    def _put(self, shape: NeedleShape, applicator: Applicator, tissue: Tissue, pose: Rigid) -> NeedleZone:
        """A shape on the needle, drawn in towards vessels where there is a rule for it."""
        setting = self.setting
        assert setting is not None
        zone = place_shape(applicator, setting.power_w, setting.time_s, tissue, shape, pose)
        if self._walls is None or applicator.modality != "microwave":
            return zone
        return cut_zone(zone, self._walls, applicator.modality)


def _apart(pose: Rigid, other: Rigid) -> NDArray[np.float64]:
    """(6,) from another needle pose to this one: tip, mm, and turn of the axis, rad."""
    turn = np.cross(other.rotation[:, 2], pose.rotation[:, 2])
    return np.concatenate([pose.translation - other.translation, turn])


def _is_near(pose: Rigid, other: Rigid) -> bool:
    """Whether two needle poses are within `STILL_MM` and `STILL_DEG`; a turn about the needle's axis does not count."""
    moved = float(np.linalg.norm(pose.translation - other.translation))
    turned = float(pose.rotation[:, 2] @ other.rotation[:, 2])
    return moved <= STILL_MM and turned >= math.cos(math.radians(STILL_DEG))
