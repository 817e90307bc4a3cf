"""The ellipse that a cloud of pairs would fill, were it normal."""

import math

import numpy as np
from matplotlib.path import Path
from matplotlib.transforms import Bbox

CORNERS = 96


def covariance_ellipse(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Points [2, 97] of {p : (p − mean)ᵀ S⁻¹ (p − mean) = χ²₂(level)}, closed; S the covariance (n − 1).

    It covers `level` of normal pairs, two or more; a line or a point where S is singular.
    """
    radius = math.sqrt(-2 * math.log1p(-level))  # the χ² quantile with two degrees of freedom
    return ellipse(np.array([np.mean(x), np.mean(y)]), np.cov(x, y), radius)


def ellipse(centre: np.ndarray, matrix: np.ndarray, radius: float) -> np.ndarray:
    """Points [2, 97] of {p : (p − centre)ᵀ S⁻¹ (p − centre) = radius²}, closed; S the matrix [2, 2]."""
    values, vectors = np.linalg.eigh(matrix)
    axes = vectors * np.sqrt(np.maximum(values, 0.0))
    angles = np.linspace(0, 2 * math.pi, CORNERS + 1)
    return centre[:, None] + axes @ (radius * np.array([np.cos(angles), np.sin(angles)]))


def clipped(edge: np.ndarray) -> np.ndarray:
    """The part of a closed curve [2, k] around a convex region where both coordinates are ≥ 0."""
    if (edge >= 0).all():
        return edge
    far = 2 * max(1.0, float(np.abs(edge).max()))
    inside = np.array(Path(edge.T, closed=True).clip_to_bbox(Bbox([[0, 0], [far, far]])).vertices).T
    return np.concatenate([inside, inside[:, :1]], axis=1)
