"""Scores of models that answer the same items in matched rounds."""

import numpy as np

from klball.comparison.rounds import RoundScores


def simulated(models=2, rounds=4, n=60, seed=0, shift=0.0) -> RoundScores:
    """Matched rounds; certainty is higher on hard samples, so that a cap on it binds."""
    rng = np.random.default_rng(seed)
    item = rng.normal(size=n)
    g = (
        -np.exp(0.4 * (item + 0.5 * rng.normal(size=(models, rounds, n))))
        - shift * np.arange(models)[:, None, None]
    )
    c = 12 - 0.7 * g + 0.5 * rng.normal(size=g.shape)
    tokens = rng.integers(1, 20, n) * np.ones_like(g)
    labels = [
        [f"{prefix}{k}" for k in range(size)] for prefix, size in (("m", models), ("r", rounds), ("i", n))
    ]
    return RoundScores(*labels, g, c, g * tokens, tokens, 4 * tokens, left_out={})
