"""The margin at every tick, with the chance of 5 mm worked out a few times a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nav.ablation.margin import compute_margin
from nav.ablation.margin_chance import ChanceSamples, UncertainZone, margin_chance
from nav.ablation.tumour import TumourModel
from nav.ablation.zone import MarginChance, MarginResult, ZoneUnion
from nav.geometry.rigid import Rigid
from nav.guidance.numbers import TipUncertainty
from nav.runtime.zone_state import MadeZone, PlacedZone

__all__ = ["LiveMargin"]

#: The chance takes longer than all the rest of a tick, and is read by a person: it stands for this long.
CHANCE_PERIOD_NS = 250_000_000


class LiveMargin:
    """Margins of one tumour.

    Parameters
    ----------
    tumour : TumourModel or None
        None: there is none yet, and no margin.
    samples : ChanceSamples or None
        Of `prepare_chance`; None: no chance is worked out.
    """

    def __init__(self, tumour: TumourModel | None, samples: ChanceSamples | None) -> None:
        self._tumour = tumour
        self._samples = samples
        self._chance: MarginChance | None = None
        self._of: tuple[object, ...] = ()
        self._made: tuple[tuple[MadeZone, ...], float | None] = ((), None)
        self._made_ns = 0

    def at(self, placed: PlacedZone, pose: Rigid, uncertainty: TipUncertainty, now_ns: int) -> MarginResult | None:
        """The margin of the zone on the needle at ``pose``, with its chance; None without a tumour."""
        tumour, samples = self._tumour, self._samples
        if tumour is None:
            return None
        found = compute_margin(tumour, placed.zone, uncertainty.covariance_mm2)
        if samples is None:
            return found
        of = (placed.zone.tier, placed.band, placed.made)
        if self._chance is None or of != self._of or now_ns - self._made_ns >= CHANCE_PERIOD_NS:
            here = placed.zone.zones[-1] if isinstance(placed.zone, ZoneUnion) else placed.zone
            zones = [
                # An earlier needle was where it was as surely as this one is where it is: the same errors, drawn anew.
                UncertainZone(one.zone, one.ras_from_tip, uncertainty.pose_covariance, one.band)
                for one in placed.made
            ]
            covariance = uncertainty.pose_covariance
            if (
                placed.off is not None
            ):  # the zone stays where it was computed: off by that, in a direction that is known
                covariance = covariance + np.outer(placed.off, placed.off)
            zones.append(UncertainZone(here, pose, covariance, placed.band))
            self._chance = margin_chance(samples, zones, found.worst_point_ras)
            self._of, self._made_ns = of, now_ns
        return replace(found, sigma_mm=self._chance.sigma_mm, chance=self._chance)

    def made_mm(self, made: tuple[MadeZone, ...]) -> float | None:
        """Smallest margin of what is killed already; None without any of it, or without a tumour."""
        if made is not self._made[0]:
            found = None
            if self._tumour is not None and made:
                found = compute_margin(self._tumour, ZoneUnion(tuple(one.zone for one in made))).min_margin_mm
            self._made = (made, found)
        return self._made[1]

    def forget(self) -> None:
        """The needle was lost: the next chance is worked out at once."""
        self._chance = None
