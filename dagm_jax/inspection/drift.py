"""Drift: how far scores have moved from those of the good validation images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Fewest scores, and fewest scores of good validation images, from which drift is computed.
LEAST_SCORES, LEAST_NORMALS = 100, 20
# Limits of the index's excess over its mean by chance: drift is stable up to the first, moderate up to the second.
_STABLE, _MODERATE = 0.1, 0.25
WARNING = (
    "warning: the scores have moved far from those of the good validation images: light, camera, material or the share "
    "of defective images has changed; look at the images before trusting the threshold"
)


def score_drift(scores: ArrayLike, normal_scores: ArrayLike) -> dict[str, Any]:
    """The drift of ``scores`` [n] against ``normal_scores`` [m] of the good validation images, as JSON values.

    population_stability_index = sum over bins of (p - q)·ln(p/q), with p and q the shares of scores and normals in the
    bins that the deciles of the normals make, each count raised by 1/2 so that an empty bin has a logarithm. by_chance
    = (bins - 1)·(1/n + 1/m), the mean of the chi-square that n·m/(n + m) times the index follows where nothing has
    moved (Yurdakul 2018). level: "stable", "moderate" or "large" by index - by_chance; "too few" images, where both
    are None. num_scores and num_validation_normals: n and m.
    """
    values, normals = np.asarray(scores, dtype=np.float64), np.asarray(normal_scores, dtype=np.float64)
    sizes = {"num_scores": int(values.size), "num_validation_normals": int(normals.size)}
    if values.size < LEAST_SCORES or normals.size < LEAST_NORMALS:
        return {"population_stability_index": None, "by_chance": None, "level": "too few", **sizes}
    deciles = np.unique(np.quantile(normals, np.linspace(0.1, 0.9, 9)))
    # A decile that several normals share is a bin of its own, or scores above it would be taken for them.
    shared = deciles[[np.count_nonzero(normals == decile) > 1 for decile in deciles]]
    edges = np.union1d(deciles, np.nextafter(shared, np.inf))
    num_bins = edges.size + 1

    def shares(x: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = np.bincount(np.searchsorted(edges, x, side="right"), minlength=num_bins) + 0.5
        return np.asarray(counts / counts.sum())

    p, q = shares(values), shares(normals)
    index = float(((p - q) * np.log(p / q)).sum())
    by_chance = (num_bins - 1) * (1 / values.size + 1 / normals.size)
    excess = index - by_chance
    level = "large" if excess > _MODERATE else "moderate" if excess > _STABLE else "stable"
    return {"population_stability_index": index, "by_chance": by_chance, "level": level, **sizes}


def describe_drift(drift: dict[str, Any]) -> str:
    """One line on the drift of a summary."""
    counts = f"{drift['num_scores']} {drift['compared']} {drift['records']}"
    counts = f"{counts}, {drift['num_validation_normals']} good validation images"
    if drift["level"] == "too few":
        return f"too few images to say ({counts})"
    index, chance = drift["population_stability_index"], drift["by_chance"]
    return f"{drift['level']}: index {index:.3f}, {chance:.3f} by chance ({counts})"
