"""Models in evaluation mode for as long as something is computed of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, then the one they had, after an error too: training would go on without dropout."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


def in_evaluation(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, with the models among its arguments in evaluation mode."""

    @wraps(function)
    def evaluated(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with evaluating(*(one for one in (*args, *kwargs.values()) if isinstance(one, torch.nn.Module))):
            return function(*args, **kwargs)

    return evaluated
