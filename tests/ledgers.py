"""A ledger with its accountant, and no trainer."""

import torch

from klball.training.accountant import Accountant
from klball.training.ledger import Ledger
from klball.training.units import Units


def named(g: torch.Tensor, c: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    return {"score": g} if c is None else {"score": g, "certainty": c}


def accountant_of(ambiguity, g, c=None, base=None, groups=None, **more) -> Accountant:
    ledger = Ledger(len(g), tuple(named(g, c)))
    ledger.rewrite(named(g, c))
    return Accountant(ambiguity, ledger, Units(base, groups), **more)
