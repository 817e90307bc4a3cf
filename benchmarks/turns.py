"""Several trainings in one process that take turns, one optimizer step each, so that noise hits all alike."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from greenlet import getcurrent, greenlet
from scipy.stats import quantile_test
from transformers import Trainer, TrainerCallback

from table import Row


class Stepwise(TrainerCallback):
    """A training that pauses after every optimizer step until it is asked for the next.

    In a greenlet, not a thread: a thread would have its own memory arena and its own pool of workers.
    """

    def __init__(self, trainer: Trainer):
        self._stop = False
        self._training = greenlet(trainer.train)
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not self._stop:
            getcurrent().parent.switch()
        control.should_training_stop |= self._stop

    def step(self) -> tuple[float, float]:
        """Seconds by the clock and of CPU from the end of one step to the end of the next."""
        clock, cpu = time.perf_counter(), time.process_time()
        self._training.switch()
        return time.perf_counter() - clock, time.process_time() - cpu

    def close(self) -> None:
        """Let the training end."""
        self._stop = True
        self._training.switch()


def in_turns(trainers: Sequence[Trainer], seconds: float, least: int) -> np.ndarray:
    """Times [rounds, trainers, 2], clock and CPU: every round is one step of each, in random order.

    At least `least` rounds, then until `seconds` are over; two rounds before them, which fill ledgers and
    optimizers, are left out.
    """
    trainings = [Stepwise(trainer) for trainer in trainers]
    order, rounds = np.random.default_rng(0), []
    began = time.perf_counter()
    while len(rounds) < least + 2 or time.perf_counter() - began < seconds:
        times = np.empty((len(trainings), 2))
        for k in order.permutation(len(trainings)):
            times[k] = trainings[k].step()
        rounds.append(times)
        if len(rounds) == 2:
            began = time.perf_counter()
    for training in trainings:
        training.close()
    return np.stack(rounds[2:])


def paired(
    benchmark: str,
    case: str,
    measure: str,
    times: np.ndarray,
    base: np.ndarray,
    target: str = "",
    block: int = 1,
) -> Row:
    """The median of paired ratios of blocks of rounds, and its 95 % interval by the sign test."""
    whole = len(times) // block * block
    ratios = times[:whole].reshape(-1, block).sum(1) / base[:whole].reshape(-1, block).sum(1)
    low, high = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return Row(benchmark, case, measure, float(np.median(ratios)), float(low), float(high), target)
