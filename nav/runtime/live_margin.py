"""The margin at every tick, with the chance of 5 mm worked out a few times a second."""

from __future__ import annotations

from dataclasses import replace

from nav.ablation.margin import compute_margin
from nav.ablation.margin_chance import ChanceSamples, UncertainZone, margin_chance, prepare_chance
from nav.ablation.tumour import TumourModel
from nav.ablation.zone import MarginChance, MarginResult
from nav.geometry.rigid import Rigid
from nav.guidance.numbers import TipUncertainty
from nav.runtime.zone_state import PlacedZone

__all__ = ["LiveMargin"]

#: The chance takes longer than all the rest of a tick, and is read by a person: it stands for this long.
CHANCE_PERIOD_NS = 250_000_000


class LiveMargin:
    """Margins of one tumour.

    Parameters
    ----------
    tumour : TumourModel or None
        None: there is none yet, and no margin.
    """

    def __init__(self, tumour: TumourModel | None) -> None:
        self._tumour = tumour
        self._samples: ChanceSamples | None = None if tumour is None else prepare_chance(tumour)
        self._chance: MarginChance | None = None
        self._of: tuple[int, object] = (0, None)
        self._made_ns = 0

    def at(self, placed: PlacedZone, pose: Rigid, uncertainty: TipUncertainty, now_ns: int) -> MarginResult | None:
        """The margin of the zone on the needle at ``pose``, with its chance; None without a tumour."""
        tumour, samples = self._tumour, self._samples
        if tumour is None or samples is None:
            return None
        found = compute_margin(tumour, placed.zone, uncertainty.covariance_mm2)
        of = (placed.zone.tier, placed.band)
        if self._chance is None or of != self._of or now_ns - self._made_ns >= CHANCE_PERIOD_NS:
            zone = UncertainZone(placed.zone, pose, uncertainty.pose_covariance, placed.band)
            self._chance = margin_chance(samples, [zone], found.worst_point_ras)
            self._of, self._made_ns = of, now_ns
        return replace(found, sigma_mm=self._chance.sigma_mm, chance=self._chance)

    def forget(self) -> None:
        """The needle was lost: the next chance is worked out at once."""
        self._chance = None
