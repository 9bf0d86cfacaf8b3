"""Drift: how far scores have moved from those of the good validation images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Fewest scores, and fewest scores of good validation images, that say anything about drift.
LEAST_SCORES, LEAST_NORMALS = 100, 20
# Excess of the index over its mean by chance up to which drift is stable, and moderate.
_STABLE, _MODERATE = 0.1, 0.25
WARNING = (
    "warning: the scores have moved far from those of the good validation images: light, camera, material or the share "
    "of defective images has changed; look at the images before trusting the threshold"
)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far scores have moved from those of the good validation images.

    by_chance: mean of the index where nothing has moved, as so few images give it. level: from index - by_chance; "too
    few" images to say, where both numbers are None.
    """

    population_stability_index: float | None
    by_chance: float | None
    level: Literal["stable", "moderate", "large", "too few"]
    num_scores: int
    num_validation_normals: int


def score_drift(scores: ArrayLike, normal_scores: ArrayLike) -> Drift:
    """The drift of ``scores`` [n] against ``normal_scores`` [m] of the good validation images.

    index = sum over bins of (p - q)·ln(p/q), with p and q the shares of scores and normals in the bins that the
    deciles of the normals make, each count raised by 1/2 so that an empty bin has a logarithm. by_chance =
    (bins - 1)·(1/n + 1/m), the mean of the chi-square that n·m/(n + m) times the index then follows (Yurdakul 2018).
    Scores beyond the normals' range count in the outermost bins. A decile that several normals share is a bin of its
    own, or scores above it would be taken for them.
    """
    values, known = np.asarray(scores, dtype=np.float64), np.asarray(normal_scores, dtype=np.float64)
    if values.size < LEAST_SCORES or known.size < LEAST_NORMALS:
        return Drift(None, None, "too few", int(values.size), int(known.size))
    deciles = np.unique(np.quantile(known, np.linspace(0.1, 0.9, 9)))
    shared = deciles[[np.count_nonzero(known == decile) > 1 for decile in deciles]]
    edges = np.union1d(deciles, np.nextafter(shared, np.inf))
    num_bins = edges.size + 1

    def shares(x: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = np.bincount(np.searchsorted(edges, x, side="right"), minlength=num_bins) + 0.5
        return np.asarray(counts / counts.sum())

    p, q = shares(values), shares(known)
    index = float(((p - q) * np.log(p / q)).sum())
    by_chance = (num_bins - 1) * (1 / values.size + 1 / known.size)
    excess = index - by_chance
    level: Literal["stable", "moderate", "large"] = (
        "large" if excess > _MODERATE else "moderate" if excess > _STABLE else "stable"
    )
    return Drift(index, by_chance, level, int(values.size), int(known.size))


def describe_drift(drift: dict[str, Any]) -> str:
    """One line on the drift that a summary holds."""
    counts = (
        f"{drift['num_scores']} {drift['compared']} {drift['records']}, {drift['num_validation_normals']} validation "
        "normals"
    )
    if drift["level"] == "too few":
        return f"too few images to say ({counts})"
    index, chance = drift["population_stability_index"], drift["by_chance"]
    return f"{drift['level']}: index {index:.3f}, {chance:.3f} by chance ({counts})"
