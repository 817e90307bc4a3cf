"""Every name that a training logs, and its meaning: docs/formats.md shows all, `klball train` its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

SFT, DPO, REWARD, GDPO, GRPO = ("sft", "dpo", "reward", "gdpo", "grpo")
ALL = (SFT, DPO, REWARD, GDPO, GRPO)
SCORED = (SFT, DPO, REWARD, GDPO)
PAIRS = (DPO, GDPO)
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


class Logged(NamedTuple):
    """A name, the families that log it, what it means, and which of their configurations do."""

    name: str
    families: tuple[str, ...]
    meaning: str
    when: Callable[[Any], Any] = lambda config: True


def _tilted(config: Any) -> bool:
    """Whether the set is a KL ball, or one around what trimming leaves."""
    return config.ambiguity == "kl" and (config.adversary_radius > 0 or _bounded(config))


def _weighs(config: Any) -> bool:
    return bool(config.ambiguity_set().needs)


def _bounded(config: Any) -> bool:
    return getattr(config, "gamma", None) is not None


def _evaluates(config: Any) -> bool:
    return str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"


def _objective(name: str) -> Callable[[Any], bool]:
    return lambda config: name in (config.objective, config.loss_type)


def _clips(config: Any) -> bool:
    return config.loss_type in CLIPPED


def _critic(config: Any) -> bool:
    return config.critic


def _entropy(config: Any) -> bool:
    return config.entropy_coef != 0 or config.use_adaptive_entropy


def _vllm(config: Any) -> bool:
    return config.use_vllm


LOGGED = (
    Logged("loss", ALL, "what is minimised, weighted; of GRPO TRL's, whose value means little"),
    Logged("grad_norm", ALL, "norm of the gradient before it is clipped"),
    Logged("learning_rate", ALL, "the optimizer's, at this step"),
    Logged("epoch", ALL, "passes over the data so far"),
    Logged("num_tokens", ALL, "tokens trained on so far, prompts included"),
    # the adversary
    Logged("lambda", ALL, "λ = dL/dε: what the worst case costs per nat of radius; 0, inf: no tilt", _tilted),
    Logged("beta", SCORED, "β, the price of the bound γ on certainty; 0 where it costs nothing", _tilted),
    Logged("certainty", (SFT,), "E_Q[C], the mean self-certainty in the worst case, nats", _bounded),
    Logged("gamma_relaxed", (SFT,), "how often γ was infeasible and relaxed, so far", _bounded),
    Logged("kl", SCORED, "KL(Q‖F), how far weights are from even ones, nats; in a KL ball ≤ ε"),
    Logged("adversary_kl", (GRPO,), "KL(Q‖F), how far weights are from even ones, nats; in a ball ≤ radius"),
    Logged("ess_ratio", ALL, "effective sample size over n: the share of the data that the weights look at"),
    Logged("robust_loss", SCORED, "worst-case mean loss of all training data (ledger), nats", _weighs),
    Logged("rescores", SCORED, "how often all samples were scored again, so far", _weighs),
    Logged("mean_weight", ALL, "mean of q/f over the samples of the step; about 1"),
    Logged("max_weight", ALL, "largest q/f among the samples of the step: how many times over one counts"),
    # samples
    Logged("plain_loss", SCORED, "mean loss of the step's samples, unweighted; of SFT: −log-likelihood"),
    Logged("nll", (SFT,), "mean −log p over the answer tokens of the step, nats"),
    Logged("entropy", (SFT, DPO, GRPO), "mean entropy of the next token over the answers, nats"),
    Logged("mean_token_accuracy", (SFT, DPO), "share of (chosen) answer tokens that were the likeliest"),
    Logged("underflow_fraction", (SFT,), "share of answers without a gradient", _objective("dft-sequence")),
    Logged("ratio", (SFT,), "mean of p/p_old over the tokens", _objective("psft")),
    Logged("clip_fraction", (SFT,), "share of tokens whose ratio is above the clip", _objective("psft")),
    # pairs
    Logged("rewards/chosen", PAIRS, "mean β·log π/π_ref of the chosen answers"),
    Logged("rewards/rejected", PAIRS, "mean β·log π/π_ref of the rejected answers"),
    Logged("rewards/margins", PAIRS, "the first less the second"),
    Logged("rewards/accuracies", PAIRS, "share of pairs whose chosen answer has the larger reward"),
    Logged("logps/chosen", (DPO,), "mean log-probability of a chosen answer, nats"),
    Logged("logps/rejected", (DPO,), "mean log-probability of a rejected answer, nats"),
    Logged("logits/chosen", (DPO,), "mean logit over the tokens of chosen answers"),
    Logged("logits/rejected", (DPO,), "mean logit over the tokens of rejected answers"),
    Logged("accuracy", (REWARD,), "share of pairs whose chosen answer has the larger reward"),
    Logged("margin", (REWARD,), "mean reward of the chosen answers less that of the rejected"),
    Logged("min_reward", (REWARD,), "smallest reward of the step's answers"),
    Logged("mean_reward", (REWARD,), "mean reward of the step's answers"),
    Logged("max_reward", (REWARD,), "largest reward of the step's answers"),
    Logged("belief_kl", (GDPO,), "KL(p*‖π) over the beliefs of a question, nats"),
    Logged("belief_nll", (GDPO,), "−log probability of a belief per token, nats"),
    Logged("text_dpo", (GDPO,), "DPO's loss of the texts under a belief"),
    Logged("js_distance", (GDPO,), "√ of the Jensen–Shannon divergence of π and p*"),
    Logged("belief_accuracy", (GDPO,), "how often π and p* have the same most frequent belief"),
    # prompts
    Logged("mean_reward", (GRPO,), "mean reward of all prompts seen so far, from the ledger, drift included"),
    Logged("worst_case_reward", (GRPO,), "the same in the worst case, E_Q", _weighs),
    Logged("mass_without_gradient", (GRPO,), "share of Q on prompts whose answers got one reward", _weighs),
    Logged("known_prompts", (GRPO,), "share of the prompts that were visited"),
    Logged("shrinkage", (GRPO,), "κ: how many completions the common mean counts for"),
    Logged("critic/loss", (GRPO,), "loss of the value model", _critic),
    Logged("critic/explained", (GRPO,), "share of the returns' variance that values explain", _critic),
    Logged("kl", (GRPO,), "TRL's: KL of the policy to the reference, nats a token", lambda c: c.beta != 0),
    Logged("reward", (GRPO,), "mean reward of the completions"),
    Logged("reward_std", (GRPO,), "standard deviation of the completions' rewards"),
    Logged("rewards/REWARD/mean", (GRPO,), "mean of one of the rewards"),
    Logged("rewards/REWARD/std", (GRPO,), "its standard deviation"),
    Logged("frac_reward_zero_std", (GRPO,), "share of prompts whose completions all got one reward"),
    Logged("completions/mean_length", (GRPO,), "mean tokens of a completion"),
    Logged("completions/min_length", (GRPO,), "least tokens of a completion"),
    Logged("completions/max_length", (GRPO,), "most tokens of a completion"),
    Logged("completions/clipped_ratio", (GRPO,), "share of completions that were cut at the limit"),
    Logged("completions/mean_terminated_length", (GRPO,), "mean tokens of those that ended"),
    Logged("completions/min_terminated_length", (GRPO,), "least tokens of those that ended"),
    Logged("completions/max_terminated_length", (GRPO,), "most tokens of those that ended"),
    Logged("clip_ratio/low_mean", (GRPO,), "share of tokens clipped below", _clips),
    Logged("clip_ratio/high_mean", (GRPO,), "share of tokens clipped above", _clips),
    Logged("clip_ratio/region_mean", (GRPO,), "share of tokens clipped", _clips),
    Logged("clip_ratio/low_min", (GRPO,), "least share of a completion's tokens clipped below", _clips),
    Logged("clip_ratio/high_max", (GRPO,), "largest share of a completion's tokens clipped above", _clips),
    Logged("cispo_clip_ratio", (GRPO,), "share of tokens clipped above", lambda c: c.loss_type == "cispo"),
    Logged("vespo/phi_seq_mean", (GRPO,), "mean of VESPO's weights", lambda c: c.loss_type == "vespo"),
    Logged("policy_loss", (GRPO,), "the loss without the entropy bonus", _entropy),
    Logged("entropy_coef", (GRPO,), "weight of the entropy bonus", _entropy),
    Logged("step_time", (GRPO,), "seconds of a step"),
    Logged("sampling/sampling_logp_difference/mean", (GRPO,), "mean distance of vLLM's log p", _vllm),
    Logged("sampling/sampling_logp_difference/max", (GRPO,), "its largest", _vllm),
    Logged("sampling/importance_sampling_ratio/min", (GRPO,), "smallest p/p of vLLM", _vllm),
    Logged("sampling/importance_sampling_ratio/mean", (GRPO,), "mean p/p of vLLM", _vllm),
    Logged("sampling/importance_sampling_ratio/max", (GRPO,), "largest p/p of vLLM", _vllm),
    # evaluations; eval_NAME of any other name is the same of the rows that are evaluated
    Logged("eval_cvar", SCORED, "mean loss of the worst 5 % of the evaluated rows", _evaluates),
    Logged("eval_robust_loss", SCORED, "their worst-case mean loss, by training's own set", _evaluates),
    Logged("eval_perplexity_token", (SFT,), "exp of the mean −log p over tokens", _evaluates),
    Logged("eval_perplexity_sample", (SFT,), "exp of minus the mean log-likelihood of rows", _evaluates),
    Logged("eval_own_hardest_1pct", (SFT,), "the same of the worst 1 % of the rows (CVaR)", _evaluates),
    Logged("eval_certainty", (SFT,), "mean self-certainty of the rows, nats", _evaluates),
    Logged("eval_runtime", (GRPO,), "seconds of the evaluation", _evaluates),
    Logged("eval_samples_per_second", (GRPO,), "completions evaluated a second", _evaluates),
    Logged("eval_steps_per_second", (GRPO,), "batches evaluated a second", _evaluates),
)  # fmt: skip


def logged_by(family: str, config: Any) -> list[Logged]:
    """What a run of that family and configuration logs, evaluations included."""
    return [entry for entry in LOGGED if family in entry.families and entry.when(config)]
