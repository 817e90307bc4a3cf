"""Robust post-training of language models, and robust comparison of language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klball.evaluation.streaming import stream_scores as stream_scores
    from klball.evaluation.tables import read_scores as read_scores
    from klball.evaluation.tables import score as score
    from klball.robust.ambiguity import AmbiguitySet as AmbiguitySet
    from klball.robust.ambiguity import CertaintyKLBall as CertaintyKLBall
    from klball.robust.ambiguity import ChiSquareBall as ChiSquareBall
    from klball.robust.ambiguity import CVaR as CVaR
    from klball.robust.ambiguity import Empirical as Empirical
    from klball.robust.ambiguity import KLBall as KLBall
    from klball.robust.dual import DualSolution as DualSolution
    from klball.robust.dual import InfeasibleError as InfeasibleError
    from klball.robust.dual import RobustProfile as RobustProfile
    from klball.robust.dual import robust_profile as robust_profile
    from klball.robust.dual import solve_dual as solve_dual
    from klball.robust.solution import Solution as Solution
    from klball.robust.streaming import StreamedSolution as StreamedSolution
    from klball.robust.streaming import solve_dual_streamed as solve_dual_streamed
    from klball.training.trainer import RobustSFTConfig as RobustSFTConfig
    from klball.training.trainer import RobustSFTTrainer as RobustSFTTrainer

_SETS = ("AmbiguitySet", "Empirical", "KLBall", "CertaintyKLBall", "CVaR", "ChiSquareBall")
_HOME = {
    **dict.fromkeys(("score", "read_scores"), "klball.evaluation.tables"),
    **dict.fromkeys(_SETS, "klball.robust.ambiguity"),
    **dict.fromkeys(("DualSolution", "InfeasibleError", "RobustProfile"), "klball.robust.dual"),
    **dict.fromkeys(("robust_profile", "solve_dual"), "klball.robust.dual"),
    "Solution": "klball.robust.solution",
    "stream_scores": "klball.evaluation.streaming",
    **dict.fromkeys(("StreamedSolution", "solve_dual_streamed"), "klball.robust.streaming"),
    **dict.fromkeys(("RobustSFTConfig", "RobustSFTTrainer"), "klball.training.trainer"),
}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    """Import on first use, so that `klball --help` need not wait for PyTorch."""
    if name not in _HOME:
        raise AttributeError(f"module 'klball' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
