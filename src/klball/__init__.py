"""Robust post-training of language models, and robust comparison of language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klball.adversary.dual import DualSolution as DualSolution
    from klball.adversary.dual import DualSolutions as DualSolutions
    from klball.adversary.dual import InfeasibleError as InfeasibleError
    from klball.adversary.dual import RobustProfile as RobustProfile
    from klball.adversary.dual import robust_profile as robust_profile
    from klball.adversary.dual import solve_dual as solve_dual
    from klball.adversary.sets import AmbiguitySet as AmbiguitySet
    from klball.adversary.sets import CertaintyKLBall as CertaintyKLBall
    from klball.adversary.sets import ChiSquareBall as ChiSquareBall
    from klball.adversary.sets import CVaR as CVaR
    from klball.adversary.sets import Empirical as Empirical
    from klball.adversary.sets import KLBall as KLBall
    from klball.adversary.solution import Solution as Solution
    from klball.adversary.streaming import StreamedSolution as StreamedSolution
    from klball.adversary.streaming import solve_dual_streamed as solve_dual_streamed
    from klball.scores.parquet import stream_scores as stream_scores
    from klball.scores.tables import read_scores as read_scores
    from klball.scores.tables import score as score
    from klball.training.sft.trainer import RobustSFTConfig as RobustSFTConfig
    from klball.training.sft.trainer import RobustSFTTrainer as RobustSFTTrainer

_SETS = ("AmbiguitySet", "Empirical", "KLBall", "CertaintyKLBall", "CVaR", "ChiSquareBall")
_HOME = {
    **dict.fromkeys(("score", "read_scores"), "klball.scores.tables"),
    **dict.fromkeys(_SETS, "klball.adversary.sets"),
    **dict.fromkeys(
        ("DualSolution", "DualSolutions", "InfeasibleError", "RobustProfile"), "klball.adversary.dual"
    ),
    **dict.fromkeys(("robust_profile", "solve_dual"), "klball.adversary.dual"),
    "Solution": "klball.adversary.solution",
    "stream_scores": "klball.scores.parquet",
    **dict.fromkeys(("StreamedSolution", "solve_dual_streamed"), "klball.adversary.streaming"),
    **dict.fromkeys(("RobustSFTConfig", "RobustSFTTrainer"), "klball.training.sft.trainer"),
}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    """Import on first use, so that `klball --help` need not wait for PyTorch."""
    if name not in _HOME:
        raise AttributeError(f"module 'klball' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
