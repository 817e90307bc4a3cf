"""solve_dual, robust_profile and the ambiguity sets, with arguments that are no scores."""

from collections.abc import Callable, Iterator
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case

NAN, INF = float("nan"), float("inf")
G, C = [-1.0, -2.0, -4.0, -1.5], [1.0, 0.5, 0.2, 0.8]


def _numpy(make: Callable[[Any], Any]) -> Callable[[], Any]:
    def call() -> Any:
        import numpy

        return make(numpy)

    return call


def _torch(make: Callable[[Any], Any]) -> Callable[[], Any]:
    def call() -> Any:
        import torch

        return make(torch)

    return call


def _pandas(make: Callable[[Any], Any]) -> Callable[[], Any]:
    def call() -> Any:
        import pandas

        return make(pandas)

    return call


SCORES: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: G, WORKS),
    "a tuple": (lambda: tuple(G), WORKS),
    "None": (lambda: None, REFUSED),
    "a word": (lambda: "abc", REFUSED),
    "bytes": (lambda: b"abc", REFUSED),
    "words": (lambda: ["-1", "-2"], REFUSED),
    "one number": (lambda: -1.0, REFUSED),
    "nothing": (lambda: [], REFUSED),
    "an empty round": (lambda: [[]], REFUSED),
    "one sample": (lambda: [-1.0], WORKS),
    "a round of one": (lambda: [[-1.0]], WORKS),
    "uneven rounds": (lambda: [[-1.0, -2.0], [-1.0]], REFUSED),
    "three dimensions": (lambda: [[[-1.0, -2.0]]], REFUSED),
    "NaN": (lambda: [-1.0, NAN, -2.0], REFUSED),
    "all NaN": (lambda: [NAN, NAN], REFUSED),
    "inf": (lambda: [-1.0, INF, -2.0], REFUSED),
    "-inf": (lambda: [-1.0, -INF, -2.0], REFUSED),
    "None inside": (lambda: [-1.0, None, -2.0], REFUSED),
    "a word inside": (lambda: [-1.0, "x"], REFUSED),
    "a list inside": (lambda: [-1.0, [2.0]], REFUSED),
    "a dict": (lambda: {"a": -1.0}, REFUSED),
    "a set": (lambda: {-1.0, -2.0}, REFUSED),
    "a function": (lambda: len, REFUSED),
    "a generator": (lambda: (x for x in G), EITHER),
    "complex numbers": (lambda: [1j, 2j], REFUSED),
    "bools": (lambda: [True, False], REFUSED),
    "whole numbers": (lambda: [-1, -2, -4], WORKS),
    "endless numbers": (lambda: [-(10**400), -1], REFUSED),
    "±1e308": (lambda: [1e308, -1e308, 0.0], EITHER),
    "subnormal numbers": (lambda: [-1e-310, -2e-310, -5e-324], EITHER),
    "a large offset": (lambda: [1e8 * -1 - 1e-6 * i for i in range(50)], WORKS),
    "an outlier": (lambda: [*G, -1e9], WORKS),
    "equal numbers": (lambda: [-1.0] * 5, WORKS),
    "minus zero": (lambda: [-0.0, 0.0], WORKS),
    "losses": (lambda: [2.3, 1.2, 4.5], REFUSED),
    "a whole table of losses": (lambda: [[2.3, 1.2], [4.5, 0.1]], REFUSED),
    "an object array": (_numpy(lambda np: np.array([-1.0, -2.0], dtype=object)), EITHER),
    "a text array": (_numpy(lambda np: np.array(["a", "b"])), REFUSED),
    "a complex array": (_numpy(lambda np: np.array([1j, -2.0])), REFUSED),
    "a bool array": (_numpy(lambda np: np.array([True, False])), REFUSED),
    "dates": (_numpy(lambda np: np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]")), REFUSED),
    "durations": (_numpy(lambda np: np.array([1, 2], dtype="timedelta64[s]")), REFUSED),
    "a masked array": (_numpy(lambda np: np.ma.masked_array(G, [0, 1, 0, 0])), REFUSED),
    "a record array": (_numpy(lambda np: np.array([(-1.0, 2)], dtype=[("a", "f8"), ("b", "i4")])), REFUSED),
    "float16": (_numpy(lambda np: np.array(G, np.float16)), WORKS),
    "long doubles": (_numpy(lambda np: np.array(G, np.longdouble)), EITHER),
    "big-endian numbers": (_numpy(lambda np: np.array(G, ">f8")), EITHER),
    "a reversed array": (_numpy(lambda np: np.array(G)[::-1]), WORKS),
    "every other number": (_numpy(lambda np: np.array(G)[::2]), WORKS),
    "a transposed array": (_numpy(lambda np: np.array([G, G]).T), WORKS),
    "a read-only array": (_numpy(lambda np: np.broadcast_to(np.float64(-1.0), (4,))), WORKS),
    "a scalar array": (_numpy(lambda np: np.array(-1.0)), REFUSED),
    "a series": (_pandas(lambda pd: pd.Series(G)), WORKS),
    "a series with NA": (_pandas(lambda pd: pd.Series([-1.0, None])), REFUSED),
    "a nullable series": (_pandas(lambda pd: pd.Series([-1.0, None], dtype="Float64")), REFUSED),
    "a frame": (_pandas(lambda pd: pd.DataFrame({"a": G})), EITHER),
    "a categorical": (_pandas(lambda pd: pd.Categorical(["a", "b"])), REFUSED),
    "a tensor": (_torch(lambda t: t.tensor(G)), WORKS),
    "a bfloat16 tensor": (_torch(lambda t: t.tensor(G, dtype=t.bfloat16)), WORKS),
    "a tensor with gradient": (_torch(lambda t: t.tensor(G, requires_grad=True)), WORKS),
    "a sparse tensor": (_torch(lambda t: t.tensor(G).to_sparse()), REFUSED),
    "a meta tensor": (_torch(lambda t: t.empty(4, device="meta")), REFUSED),
    "a complex tensor": (_torch(lambda t: t.tensor([1j, 2j])), REFUSED),
    "a bool tensor": (_torch(lambda t: t.tensor([True, False])), REFUSED),
    "a scalar tensor": (_torch(lambda t: t.tensor(-1.0)), REFUSED),
    "an empty tensor": (_torch(lambda t: t.empty(0)), REFUSED),
    "rounds without samples": (_torch(lambda t: t.empty(3, 0)), REFUSED),
    "no rounds": (_torch(lambda t: t.empty(0, 3)), REFUSED),
}
NUMBERS: dict[str, Any] = {
    **{"-1": -1.0, "NaN": NAN, "inf": INF, "a word": "x", "an empty word": "", "None": None, "a list": [0.1]},
    **{"a dict": {}, "a complex number": 1j, "10^400": 10**400, "True": True, "a numeric word": "0.1"},
}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "certainty of another length": ({"certainty": C[:3], "gamma": 0.6}, REFUSED),
    "certainty with NaN": ({"certainty": [1.0, NAN, 0.2, 0.8], "gamma": 0.6}, REFUSED),
    "certainty with inf": ({"certainty": [1.0, INF, 0.2, 0.8], "gamma": 0.6}, REFUSED),
    "certainty of words": ({"certainty": ["a"] * 4, "gamma": 0.6}, REFUSED),
    "certainty with None": ({"certainty": [1.0, None, 0.2, 0.8], "gamma": 0.6}, REFUSED),
    "certainty of one number": ({"certainty": 1.0, "gamma": 0.6}, REFUSED),
    "certainty of rounds": ({"certainty": [C, C], "gamma": 0.6}, REFUSED),
    "negative certainty": ({"certainty": [-c for c in C], "gamma": 0.6}, EITHER),
    "gamma without certainty": ({"gamma": 0.6}, REFUSED),
    "an infeasible gamma": ({"certainty": C, "gamma": 0.1}, REFUSED),
    "a slack gamma": ({"certainty": C, "gamma": 9.0}, WORKS),
    "weights of another length": ({"base_weights": [0.5, 0.5]}, REFUSED),
    "negative weights": ({"base_weights": [-1.0, 1.0, 1.0, 1.0]}, REFUSED),
    "weights of zeros": ({"base_weights": [0.0] * 4}, REFUSED),
    "one weight of zero": ({"base_weights": [0.0, 1.0, 1.0, 1.0]}, EITHER),
    "NaN weights": ({"base_weights": [NAN, 1.0, 1.0, 1.0]}, REFUSED),
    "infinite weights": ({"base_weights": [INF, 1.0, 1.0, 1.0]}, REFUSED),
    "weights that overflow": ({"base_weights": [1e308] * 4}, EITHER),
    "weights of words": ({"base_weights": ["a"] * 4}, REFUSED),
    "weights of rounds": ({"base_weights": [[0.25] * 4] * 2}, EITHER),
    "weights of a wide range": ({"base_weights": [1e-17, 1.0, 1e-9, 1.0]}, WORKS),
    "a cap below 1": ({"max_weight": 0.5}, REFUSED),
    "a cap of 1": ({"max_weight": 1.0}, WORKS),
    "a huge cap": ({"max_weight": 1e300}, WORKS),
    "an unknown argument": ({"wow": 1}, EITHER),
}
EPSILONS: dict[str, tuple[Any, str]] = {
    "none": ([], REFUSED),
    "one": ([0.1], WORKS),
    "zero": ([0.0], WORKS),
    "a number": (0.1, EITHER),
    "negative": ([-0.1], REFUSED),
    "NaN": ([0.1, NAN], REFUSED),
    "inf": ([0.1, INF], REFUSED),
    "words": (["a"], REFUSED),
    "None": (None, REFUSED),
    "None inside": ([None], REFUSED),
    "a table": ([[0.1, 0.2]], REFUSED),
    "falling": ([0.5, 0.1], WORKS),
    "repeated": ([0.1, 0.1], WORKS),
    "huge": ([1e300], WORKS),
    "tiny": ([1e-300], REFUSED),
    "small": ([1e-12], WORKS),
}


def _solve(**arguments: Any) -> Any:
    import klball

    scores = arguments.pop("scores", G)
    return klball.solve_dual(scores, **{"epsilon": 0.1, **arguments})


def cases() -> Iterator[Case]:
    """All of them."""

    def case(title: str, expected: str, call: Callable[[], Any], hints: tuple[str, ...] = ()) -> Case:
        return Case(title, "API: solve_dual", expected, call=call, hints=hints)

    for kind, (make, expected) in SCORES.items():
        yield case(f"solve_dual: {kind}", expected, lambda make=make: _solve(scores=make()))
        yield case(
            f"robust_profile: {kind}",
            _for_profile(kind, expected),
            lambda make=make: _profile(make(), [0.0, 0.1]),
        )
    for argument in ("epsilon", "gamma", "max_weight"):
        for kind, value in NUMBERS.items():
            expected = WORKS if value is None and argument != "epsilon" else REFUSED
            expected = (
                EITHER
                if kind in ("True", "a numeric word") or (argument == "gamma" and kind == "-1")
                else expected
            )
            more = {"certainty": C} if argument == "gamma" else {}
            call = lambda argument=argument, value=value, more=more: _solve(**{argument: value}, **more)  # noqa: E731
            yield case(f"solve_dual: {argument} {kind}", expected, call, (argument,))
    for kind, (arguments, expected) in OTHERS.items():
        if "wow" not in arguments:
            yield case(f"solve_dual: {kind}", expected, lambda arguments=arguments: _solve(**arguments))
    for kind, (epsilons, expected) in EPSILONS.items():
        yield case(f"robust_profile: epsilons {kind}", expected, lambda e=epsilons: _profile(G, e))
    yield from _sets()


def _for_profile(kind: str, expected: str) -> str:
    """A profile is of one set of scores; rounds may be refused."""
    return EITHER if kind in ("a round of one", "a transposed array") else expected


def _profile(scores: Any, epsilons: Any) -> Any:
    import klball

    return klball.robust_profile(scores, epsilons)


def _sets() -> Iterator[Case]:
    for kind, value in NUMBERS.items():
        for name, argument in (("KLBall", "epsilon"), ("CertaintyKLBall", "gamma"), ("KLBall", "max_weight")):
            expected = EITHER if kind in ("True", "a numeric word") else REFUSED
            if (argument == "gamma" and kind == "-1") or (argument == "max_weight" and kind == "None"):
                expected = WORKS

            def call(name: str = name, argument: str = argument, value: Any = value) -> Any:
                import klball

                more = {} if argument == "epsilon" else {"epsilon": 0.1}
                return getattr(klball, name)(**{argument: value}, **more)

            yield Case(
                f"{name}: {argument} {kind}", "API: solve_dual", expected, call=call, hints=(argument,)
            )
