"""The critic of PPO: a value of every state of a completion, and the advantages it gives."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from klball.models.loading import causal_lm
from klball.training.rl.config import RobustGRPOConfig
from klball.training.step import StepHook

WEIGHTS_FILE = "critic.safetensors"
OPTIMIZER_FILE = "critic_optimizer.pt"


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float) -> Tensor:
    """Generalised advantage estimates, (B, T), of completions that are rewarded at their end.

        A_t = Σ_k (γλ)^k δ_{t+k},   δ_t = r_t + γ V_{t+1} − V_t,   V = 0 behind the end

    rewards: (B). values: (B, T), V_t of the state before token t. mask: (B, T), 1 up to a completion's end.
    """
    mask = mask.to(values.dtype)
    last = mask - torch.nn.functional.pad(mask, (0, 1))[:, 1:]
    advantages, following, ahead = torch.zeros_like(values), values.new_zeros(len(values)), rewards * 0
    for t in reversed(range(values.shape[1])):
        delta = last[:, t] * rewards + gamma * following - values[:, t]
        ahead = mask[:, t] * (delta + gamma * lambda_ * ahead)
        following = mask[:, t] * values[:, t]
        advantages[:, t] = ahead
    return advantages


class Values(nn.Module):
    """The policy's backbone, copied, with a head that begins at 0."""

    def __init__(self, policy: Any):
        super().__init__()
        self.backbone = copy.deepcopy(policy.base_model)
        weight = policy.get_output_embeddings().weight
        self.head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """V of the state before every token of the completions, (B, T)."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        hidden = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        start = batch["prompt_ids"].shape[1] - 1
        values = self.head(hidden[:, start:-1])[..., 0]
        return values.to(torch.promote_types(values.dtype, torch.float32))


class Critic(StepHook):
    """Learns the values along with the policy: V_t from the state before token t, all with one reward's end.

        loss = ½ max((V − R)², (V_old + clip(V − V_old, ±c) − R)²)      R = A + V_old

    summed over the tokens of a step's completions and divided by their number times max_completion_length,
    so it does not depend on micro-batches or processes. It keeps its own AdamW; prompts are not weighed,
    since a value is one whatever the prompts are.
    """

    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "critic": (WEIGHTS_FILE,),
        "optimizer state of the critic": (OPTIMIZER_FILE,),
    }

    def __init__(self, policy: Any, args: RobustGRPOConfig, accelerator: Any):
        if isinstance(policy, PeftModel):
            raise ValueError("critic=True copies and trains all of the model: it cannot follow an adapter")
        if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
            raise ValueError("critic=True is not supported with a sharded model")
        self.args, self.accelerator = args, accelerator
        self.net = Values(causal_lm(policy)).to(accelerator.device).eval()  # eval: no dropout
        self.net.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=args.critic_learning_rate, weight_decay=args.weight_decay
        )

    @torch.no_grad()
    def values(self, batch: Mapping[str, Tensor]) -> Tensor:
        """V of one batch of rollouts, (B, T), in pieces of a micro-batch."""
        size = self.args.per_device_train_batch_size
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        pieces = zip(*(batch[name].split(size) for name in names), strict=True)
        return torch.cat([self.net(dict(zip(names, piece, strict=True))) for piece in pieces])

    def judge(self, batch: Mapping[str, Tensor], rewards: Tensor) -> dict[str, Tensor]:
        """Of a batch of rollouts: "advantages", "values" and "returns", (B, T) each, and "judged", (B).

        rewards: (B), NaN for completions without one, which teach nothing.
        """
        judged = ~rewards.isnan()
        values, mask = self.values(batch), batch["completion_mask"]
        advantages = gae(
            rewards.nan_to_num(0.0).to(values), values, mask, self.args.gae_gamma, self.args.gae_lambda
        )
        advantages = advantages * judged[:, None]
        return {"advantages": advantages, "values": values, "returns": advantages + values, "judged": judged}

    def accumulate(self, batch: Mapping[str, Tensor], micro_batches: int) -> float:
        """Adds the gradient of one of the step's micro-batches; returns its loss, the mean over tokens."""
        with torch.enable_grad():
            values, old, returns = self.net(batch), batch["values"], batch["returns"]
            clip = self.args.value_clip
            near = old + (values - old).clamp(-clip, clip)
            losses = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
            mask = batch["completion_mask"] * batch["judged"][:, None]
            total = (losses * mask).sum()
            length: Any = self.args.max_completion_length
            (total / (len(values) * length * micro_batches)).backward()
        return float(total.detach() / mask.sum().clamp(min=1))

    def step(self) -> None:
        """One step of its own optimizer, on the mean of all processes' gradients."""
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        for parameter in parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        if self.args.max_grad_norm and self.args.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path, process: int) -> None:
        if process == 0:
            state = {name: value.contiguous() for name, value in self.net.state_dict().items()}
            save_file(state, folder / WEIGHTS_FILE)
            torch.save(self.optimizer.state_dict(), folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> None:
        try:
            self.net.load_state_dict(load_file(folder / WEIGHTS_FILE))
            self.optimizer.load_state_dict(torch.load(folder / OPTIMIZER_FILE, weights_only=True))
        except FileNotFoundError:
            raise ValueError(f"{folder} has no critic: it is of a run without critic=True") from None


class CriticSteps(TrainerCallback):
    """Steps the critic with the policy."""

    def __init__(self, critic: Critic):
        self.critic = critic

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.critic.step()
