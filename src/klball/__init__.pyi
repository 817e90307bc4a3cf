# The public names: docs and examples import no others (tests/test_docs.py).
from .adversary.dual import DualSolution as DualSolution
from .adversary.dual import InfeasibleError as InfeasibleError
from .adversary.dual import RobustProfile as RobustProfile
from .adversary.dual import robust_profile as robust_profile
from .adversary.dual import solve_dual as solve_dual
from .adversary.sets import AmbiguitySet as AmbiguitySet
from .adversary.sets import CertaintyKLBall as CertaintyKLBall
from .adversary.sets import ChiSquareBall as ChiSquareBall
from .adversary.sets import CVaR as CVaR
from .adversary.sets import Empirical as Empirical
from .adversary.sets import KLBall as KLBall
from .adversary.solution import Solution as Solution
from .adversary.streaming import StreamedSolution as StreamedSolution
from .adversary.streaming import solve_dual_streamed as solve_dual_streamed
from .comparison.analysis import Comparison as Comparison
from .comparison.analysis import compare_scores as compare_scores
from .comparison.rounds import RoundScores as RoundScores
from .comparison.rounds import RoundSolutions as RoundSolutions
from .comparison.rounds import largest_epsilon_with_ess as largest_epsilon_with_ess
from .comparison.rounds import round_scores as round_scores
from .comparison.rounds import solve_rounds as solve_rounds
from .data.paraphrase.rounds import Rounds as Rounds
from .data.paraphrase.rounds import read_rounds as read_rounds
from .data.sources import load_rows as load_rows
from .models.loading import load_model as load_model
from .scores.parquet import stream_scores as stream_scores
from .scores.tables import read_scores as read_scores
from .scores.tables import score as score
from .training.rl.config import RobustGRPOConfig as RobustGRPOConfig
from .training.rl.grpo import RobustGRPOTrainer as RobustGRPOTrainer
from .training.sft.config import RobustSFTConfig as RobustSFTConfig
from .training.sft.trainer import RobustSFTTrainer as RobustSFTTrainer

__version__: str
