"""Evaluation row by row: TRL's would give means of batch means."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from torch import Tensor

from klball.adversary.sets import AmbiguitySet, CVaR
from klball.data.ids import group_names
from klball.training.accountant import Accountant
from klball.training.ledger import Ledger
from klball.training.units import Units

WORST_SHARE = 0.05
WORST_CASES = ("robust_loss", "cvar")  # of every family that is evaluated row by row


class RowEvaluation:
    """Before a trainer of TRL: evaluates data sets from a table of their rows, and builds no logits."""

    # what a trainer of TRL has
    args: Any
    state: Any
    model: Any
    control: Any
    optimizer: Any
    callback_handler: Any
    is_in_train: Any
    eval_dataset: Any
    log: Any
    # and RobustTrainer
    ambiguity: AmbiguitySet
    _relax: bool

    def eval_rows(self, dataset: Any) -> Dataset:
        """The rows of a data set given to `evaluate`, prepared as the constructor prepares its own."""
        raise NotImplementedError

    def eval_metrics(self, rows: Dataset) -> dict[str, float]:
        """Metrics of prepared rows by name, `loss` among them."""
        raise NotImplementedError

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """`eval_metrics` of every evaluation set, whatever the batches and processes."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):  # the name of one of several
            of_name = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
            if dataset not in of_name:
                raise ValueError(
                    f"eval_dataset={dataset!r} is no name of an evaluation set given to the trainer"
                )
            dataset = of_name[dataset]
        if dataset is None:
            raise ValueError("there is nothing to evaluate: give eval_dataset")
        if isinstance(dataset, dict):
            named = {k: k if eval_dataset is None else d for k, d in dataset.items()}
            parts = (self.evaluate(d, ignore_keys, f"{metric_key_prefix}_{k}") for k, d in named.items())
            return {name: value for part in parts for name, value in part.items()}
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        rows = self.eval_rows(dataset) if given else dataset
        if callable(getattr(self.optimizer, "eval", None)):  # of those that average, to the averaged weights
            self.optimizer.eval()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.eval_metrics(rows).items()}
        self.model.eval()  # TRL's log keeps training and evaluation metrics apart by this
        self.log(metrics)
        self.model.train(self.is_in_train)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def worst_cases(
        self, scores: dict[str, Tensor], sizes: Tensor | None, units: Dataset
    ) -> dict[str, float]:
        """What an adversary makes of fresh scores [n] of evaluated units, whose base weights are `sizes`.

        robust_loss: the worst case of training's own set, over groups where it weighs those; none where
        `units` lack their column. cvar: the mean loss of the worst 5 % of the units.
        """
        ledger = Ledger(len(scores["score"]), self.ambiguity.needs)
        ledger.rewrite(scores)
        found = {"cvar": -_worst_case(CVaR(WORST_SHARE), ledger, Units(sizes), relax=False)}
        column = self.args.group_column
        if column is None or column in units.column_names:
            of_training = Units(sizes, None if column is None else group_names(units, column))
            found["robust_loss"] = -_worst_case(self.ambiguity, ledger, of_training, self._relax)
        return found

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it would gather logits that are never built."""
        raise ValueError("predict needs logits that are never built: use evaluate(rows) or klball.score")


def _worst_case(ambiguity: AmbiguitySet, ledger: Ledger, units: Units, relax: bool) -> float:
    return float(Accountant(ambiguity, ledger, units, relax).solve().worst_case)


def named_sets(evaluation: Any) -> list[tuple[str, Any]]:
    """What messages call the data sets to evaluate on, none or several, and their rows."""
    if isinstance(evaluation, dict):
        return [(f"eval_dataset {name!r}", rows) for name, rows in evaluation.items()]
    return [] if evaluation is None else [("eval_dataset", evaluation)]


def each_set(evaluation: Any, prepared: Callable[[Any, str], Any]) -> Any:
    """What was given, every data set `prepared`: of its rows, and of what messages call it."""
    if isinstance(evaluation, dict):
        return {name: prepared(rows, f"eval_dataset {name!r}") for name, rows in evaluation.items()}
    return None if evaluation is None else prepared(evaluation, "eval_dataset")


def refuse_metric_without_groups(args: Any, evaluation: Any) -> None:
    """Raise ValueError if the best model is to be chosen by a worst case over groups that no row names."""
    column = args.group_column
    if column is None or not str(args.metric_for_best_model).endswith("robust_loss"):
        return
    for _, rows in named_sets(evaluation):
        if column not in rows.column_names:
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r} is the worst case over groups, and "
                f"the rows to evaluate on have no column {column!r}"
            )
