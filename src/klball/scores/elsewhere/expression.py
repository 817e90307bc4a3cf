"""`--score`: a column, or a weighted sum of columns, parsed and never evaluated as code."""

import ast
import math
import re
from collections.abc import Mapping, Sequence

from klball.scores.elsewhere.source import listed
from klball.scores.measure import Measure

LONGEST = 500  # characters
CONSTANT = ""  # the name under which a sum keeps its constant
LOSSES = frozenset(
    {
        *("loss", "losses", "logloss", "nll", "xent", "crossentropy", "perplexity", "perplexities", "ppl"),
        *("surprisal", "bpb", "bpc", "bpt", "deviance", "error", "errors", "err", "cost", "regret"),
        *("wer", "cer", "ter", "mae", "mse", "rmse", "mape", "brier"),
        *("penalty", "distance", "toxic", "toxicity"),
        *("wrong", "wrongly", "fail", "fails", "failed", "failing", "failure", "failures"),
        *("mistake", "mistakes", "mistaken", "invalid", "violation", "violations", "violated", "violates"),
        *("hallucination", "hallucinations", "hallucinated", "hallucinates"),
    }
)
NEVER_NEGATIVE = frozenset(
    ("nll", "perplexity", "ppl", "surprisal", "wer", "cer", "mae", "mse", "rmse", "brier")
)
RIGHT = frozenset(
    {
        *("acc", "accuracy", "accurate", "accurately", "em", "match", "matches", "matched"),
        *("correct", "correctly", "correctness", "right", "rightly", "includes"),
        *("pass", "passes", "passed", "solved", "resolved"),
        *("success", "successes", "successful", "successfully", "succeed", "succeeds", "succeeded"),
    }
)
GAINS = RIGHT | {
    *("likelihood", "likelihoods", "loglikelihood", "logprob", "logprobs", "logp", "ll"),
    *("f1", "bleu", "chrf", "rouge", "meteor"),
    *("reward", "rewards", "utility", "win", "wins"),
}
NEUTRAL = frozenset(("score", "scores", "value", "result", "outcome"))
MINUS = frozenset(("neg", "negative", "minus"))
DENIALS = frozenset(("not", "non", "no", "un"))  # of the next word: `no_context_error` denies the context
PREFIXES = ("un", "in", "non", "mis")  # which deny the gain that they stand before: `unsolved`, `mismatch`
PHRASES = ("cross_entropy", "bits_per")  # of words joined with _
BOUNDED = RIGHT | {"f1", "bleu", "chrf", "rouge", "meteor"}  # shares, written as such or in percent
BOOKKEEPING = frozenset(
    ("index", "idx", "trial", "epoch", "seed", "turn", "timestamp", "tstamp", "shots", "padded", "truncated")
)


def words(name: str) -> set[str]:
    """The words of a column's name, in lower case: `evalLoss_2` has eval, loss and 2."""
    return {form for word in _in_order(name) for form in _forms(word)}


def _in_order(name: str) -> list[str]:
    return re.findall(r"[a-z]+\d*|\d+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def _forms(word: str) -> set[str]:
    return {word, word.rstrip("0123456789")}


def direction(name: str) -> int:
    """−1 where a name says that less is better, 1 where it says that more is, 0 where it says neither."""
    own = [word for word in _in_order(name) if word != "exact"]  # `non_exact_match` is `non_match`
    said = {_says_after(own[:i], word) for i, word in enumerate(own)}
    lower = -1 in said or any(phrase in "_".join(_in_order(name)) for phrase in PHRASES)
    found = -1 if lower else 1 if 1 in said else 0
    return -found if MINUS & {*own} else found


def _says(word: str) -> int:
    forms = _forms(word)
    denied = {form.removeprefix(p) for form in forms for p in PREFIXES if form.startswith(p)}
    return -1 if forms & LOSSES or denied & GAINS else 1 if forms & GAINS else 0


def _says_after(before: Sequence[str], word: str) -> int:
    """In doubt a loss, of which users are asked: `not` denies all gains after it, and the next loss only."""
    says = _says(word)
    denied = not DENIALS.isdisjoint(before[-1:]) or (says > 0 and "not" in before)
    return -says if denied else says


def is_right(name: str) -> bool:
    """Whether a name says that 1 is right and 0 wrong."""
    return direction(name) > 0 and bool(words(name) & RIGHT)


def is_share(name: str) -> bool:
    """Whether a name says that values lie in [0, 1], or in [0, 100] as percentages."""
    return direction(name) > 0 and bool(words(name) & BOUNDED)


def is_bookkeeping(name: str) -> bool:
    """Whether a name says that numbers count or date something, and measure nothing."""
    return bool(words(name) & BOOKKEEPING)


def weighted_sum(text: str, columns: Mapping[str, object], where: str = "") -> dict[str, float]:
    """column → coefficient, of `text`: a column's name, or such as `a + 0.1*b`, `1 - error`, `'odd name'/2`.

    The constant, where there is one, is under "". where: whose columns they are, for messages. Raises
    ValueError for anything else.
    """
    if text in columns:
        return {text: 1.0}
    try:
        if len(text) > LONGEST:
            raise SyntaxError(f"longer than {LONGEST} characters")
        terms = _linear(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(
            f"--score {text[:80]!r} is no column and no weighted sum of columns such as "
            f"\"a + 0.1*'odd name'\" ({said}); there are {listed(columns)}"
        ) from error
    for name in terms:
        if name and name not in columns:
            of = f" in {where}" if where else ""
            raise ValueError(f"--score: no column {name!r}{of}; there are {listed(columns)}")
    terms = {name: factor for name, factor in terms.items() if factor or not name}
    if not any(terms):
        raise ValueError(f"--score {text!r} has no column with a weight other than 0")
    if not all(map(math.isfinite, terms.values())):
        raise ValueError(f"--score {text!r} has a weight that is not finite")
    return terms


def _linear(node: ast.expr) -> dict[str, float]:
    match node:
        case ast.Name(id=name) | ast.Constant(value=str(name)) if name:
            return {name: 1.0}
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return {CONSTANT: float(number)}
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=inner):
            return _times(-1.0 if isinstance(sign, ast.USub) else 1.0, _linear(inner))
        case ast.BinOp(left=left, op=operator, right=right):
            return _joined(_linear(left), operator, _linear(right))
    raise ValueError("only names, numbers, +, −, * and / are allowed")


def _joined(left: dict[str, float], operator: ast.operator, right: dict[str, float]) -> dict[str, float]:
    numbers = [set(terms) == {CONSTANT} for terms in (left, right)]
    match operator:
        case ast.Add():
            found = _added(left, right)
        case ast.Sub():
            found = _added(left, _times(-1.0, right))
        case ast.Mult() if any(numbers):
            found = _times(left[CONSTANT], right) if numbers[0] else _times(right[CONSTANT], left)
        case ast.Div() if numbers[1] and right[CONSTANT] != 0:
            found = _times(1 / right[CONSTANT], left)
        case ast.Mult():
            raise ValueError("a product of two columns is no weighted sum")
        case ast.Div():
            raise ValueError("only a number other than 0 can divide")
        case _:
            raise ValueError("only names, numbers, +, −, * and / are allowed")
    return found


def _times(factor: float, terms: Mapping[str, float]) -> dict[str, float]:
    return {name: factor * own for name, own in terms.items()}


def _added(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in (*a, *b)}


def check_direction(
    terms: Mapping[str, float], lower_is_better: bool | None, known: Mapping[str, Measure], where: str
) -> None:
    """Raise ValueError where a column's name and the direction contradict each other.

    known: what the format itself says of columns; such a column alone needs no flag. where: for the message.
    """
    if lower_is_better is None and [*terms.values()] == [1.0] and {*terms} <= {*known}:
        return
    for name, factor in terms.items():
        says = direction(name) if name else 0
        if name in known:
            says = -1 if known[name].loss else 1
        sign = math.copysign(1, factor) * (-1 if lower_is_better else 1)
        if says < 0 < sign and lower_is_better is None:
            raise ValueError(
                f"{where}: of a column called {name!r} less is better: say so with --lower_is_better (or, if "
                "more is better, with --lower_is_better false)"
            )
        if says < 0 < sign and lower_is_better is False and name in known:
            raise ValueError(
                f"{where}: the format says that of {name!r} less is better: leave --lower_is_better out"
            )
        if says < 0 < sign and lower_is_better:
            raise ValueError(
                f"{where}: --lower_is_better contradicts the minus before {name!r}: leave one out"
            )
        if says > 0 > sign and lower_is_better:
            raise ValueError(
                f"{where}: of a column called {name!r} more is better: leave --lower_is_better out (if it "
                f'holds losses all the same, write --score "-{name}" without the flag)'
            )
