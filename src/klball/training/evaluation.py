"""Evaluation row by row: TRL's would give means of batch means."""

from typing import Any

from datasets import Dataset


class RowEvaluation:
    """Before a trainer of TRL: evaluates data sets from a table of their rows, and builds no logits."""

    # what a trainer of TRL has
    args: Any
    state: Any
    model: Any
    control: Any
    callback_handler: Any
    is_in_train: Any
    eval_dataset: Any
    log: Any

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
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise ValueError("there is nothing to evaluate: give eval_dataset")
        if isinstance(dataset, dict):
            named = {k: k if eval_dataset is None else d for k, d in dataset.items()}
            parts = (self.evaluate(d, ignore_keys, f"{metric_key_prefix}_{k}") for k, d in named.items())
            return {name: value for part in parts for name, value in part.items()}
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        rows = self.eval_rows(dataset) if given else dataset
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.eval_metrics(rows).items()}
        self.model.eval()  # TRL's log keeps training and evaluation metrics apart by this
        self.log(metrics)
        self.model.train(self.is_in_train)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it would gather logits that are never built."""
        raise ValueError("predict needs logits that are never built: use evaluate(rows) or klball.score")
