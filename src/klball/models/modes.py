"""Models in evaluation mode for as long as something is computed of them."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_evaluation(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, with the models among its arguments in evaluation mode, and then in the one they had.

    An error, too, leaves them as they were: training that goes on would be without dropout.
    """

    @wraps(function)
    def evaluating(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        models = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.nn.Module)]
        modes = [model.training for model in models]
        try:
            for model in models:
                model.eval()
            return function(*args, **kwargs)
        finally:
            for model, training in zip(models, modes, strict=True):
                model.train(training)

    return evaluating
