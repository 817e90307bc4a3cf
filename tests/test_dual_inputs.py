"""What `solve_dual` takes and what it refuses in one line, and that it can be called anywhere."""

import datetime
import itertools
import math
import os
import signal
import threading
import time
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from klball import cli, robust_profile, solve_dual, solve_dual_streamed

G = np.array([-1.0, -3.5, -0.2, -2.0])


@pytest.mark.parametrize(
    "values",
    [
        G.tolist(),
        tuple(G),
        G[::-1],
        np.stack([G, G])[:, ::-1],
        np.repeat(G, 2)[::2],
        np.asfortranarray(np.stack([G, G + 0.1, G])),
        G.astype(np.float16),
        G.astype(np.longdouble),
        np.ma.masked_array(G),
        pd.Series(G),
        pd.Series(G, dtype="Float64"),
        pd.Series(G)[::-1],
        pa.array(G),
        pa.chunked_array([G[:2], G[2:]]),
        torch.from_numpy(G).flip(0),
        torch.tensor(G, dtype=torch.bfloat16, requires_grad=True),
        torch.tensor(np.stack([G, G])).T.contiguous().T,
        [Decimal(str(v)) for v in G],
        np.array(G.tolist(), dtype=object),
        np.array([-3, -1, 0], dtype=np.int8),
    ],
    ids=lambda values: type(values).__name__,
)
def test_arrays_of_every_make(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = solve_dual(values, epsilon=0.1)
    plain = (
        values.detach().double().numpy()
        if isinstance(values, torch.Tensor)
        else np.array(values, dtype=float)
    )
    expected = solve_dual(np.ascontiguousarray(plain), epsilon=0.1)
    assert np.asarray(s.weights) == pytest.approx(expected.weights, abs=1e-15)
    assert isinstance(s.weights, torch.Tensor) == isinstance(values, torch.Tensor)


def test_the_input_is_not_written_to():
    g = G.copy()
    g.flags.writeable = False
    solve_dual(g, g, epsilon=0.1, gamma=-1.0, base_weights=np.ones(4), max_weight=2)
    solve_dual(pd.Series(g), epsilon=0.1).weights[0] = 0.0
    assert (g == G).all()


BAD = {
    "complex": np.array([-1 + 1j, -2]),
    "complex tensor": torch.tensor([-1 + 1j, -2]),
    "dates": np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[D]"),
    "durations": np.array([1, 2], dtype="timedelta64[s]"),
    "python dates": [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)],
    "strings": ["-1.0", "-2.0"],
    "string objects": np.array(["-1.0", -2.0], dtype=object),
    "bytes": np.array([b"-1", b"-2"]),
    "masked": np.ma.masked_array([-1.0, -2.0], mask=[True, False]),
    "missing": [-1.0, None],
    "pandas missing": pd.Series([-1.0, None], dtype="Float64"),
    "sparse": torch.tensor([-1.0, 0.0]).to_sparse(),
    "meta": torch.empty(2, device="meta"),
    "ragged": [[-1.0, -2.0], [-3.0]],
    "dictionary": {"a": -1.0},
    "scalar": -1.0,
    "three dimensions": np.zeros((1, 1, 2)),
    "NaN": [-1.0, math.nan],
    "infinite": [-math.inf, -1.0],
    "overflowing range": [-1e308, 1e308],
}


SAID_OTHERWISE = {("base_weights", "missing"), ("base_weights", "overflowing range")}
PLACES = itertools.product(["log_likelihood", "loss", "certainty", "base_weights"], BAD)


@pytest.mark.parametrize(("argument", "kind"), [place for place in PLACES if place not in SAID_OTHERWISE])
def test_what_is_no_array_of_scores_is_refused_in_one_line(kind, argument):
    arguments = {} if argument == "loss" else {"log_likelihood": [-1.0, -2.0]}
    with pytest.raises(ValueError, match=argument) as caught:
        solve_dual(**{**arguments, argument: BAD[kind]}, epsilon=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ([1e308, 1e308], "infinity"),
        ([0.0, 0.0], "zero"),
        ([1.0, -1e-9], "negative"),
        ([1.0, math.nan], "NaN"),
        ([1.0, math.inf], "infinite"),
        ([[1.0, 1.0], [0.0, 0.0]], "zero"),
    ],
)
def test_base_weights_that_are_no_distribution(base, message):
    with pytest.raises(ValueError, match=f"base_weights.*{message}"):
        solve_dual([[-1.0, -2.0], [-1.0, -2.0]], epsilon=0.1, base_weights=base)


# --- losses -----------------------------------------------------------------------------------


def test_losses_are_log_likelihoods_turned_round():
    loss = [2.3, 1.2, 4.5]
    s, mirrored = solve_dual(loss=loss, epsilon=0.5), solve_dual([-v for v in loss], epsilon=0.5)
    assert s.weights.argmax() == 2 and (s.weights == mirrored.weights).all()
    assert s.worst_case == mirrored.worst_case < 0
    profile = robust_profile(loss=loss, epsilons=[0.1, 1.0])
    assert profile == robust_profile([-v for v in loss], [0.1, 1.0])


@pytest.mark.parametrize(
    "solve",
    [
        lambda g: solve_dual(g, epsilon=0.5),
        lambda g: solve_dual(np.stack([g, g]), epsilon=0),
        lambda g: robust_profile(g, [0.1]),
        lambda g: solve_dual_streamed([lambda: [(g, None)]], epsilon=0.5),
        lambda g: solve_dual_streamed([lambda: [(g, None)]], epsilon=9.0),
    ],
)
def test_positive_log_likelihoods_are_taken_for_losses(solve):
    with pytest.raises(ValueError, match=r"look like losses.*loss="):
        solve(np.array([2.3, 1.2, 4.5]))
    solve(np.array([2.3, -1.2, 4.5]))  # a density may be above one


def test_one_of_the_two_is_needed():
    for arguments in ({}, {"log_likelihood": G, "loss": -G}):
        with pytest.raises(ValueError, match="either log_likelihood or loss"):
            solve_dual(**arguments, epsilon=0.1)
    with pytest.raises(ValueError, match="either log_likelihood or loss"):
        robust_profile(epsilons=[0.1])
    with pytest.raises(ValueError, match="epsilons"):
        robust_profile(G)


def test_the_command_refuses_losses(tmp_path, capsys):
    from test_streamed_tables import write_scores

    write_scores(tmp_path / "losses.parquet", np.array([2.3, 1.2]), np.array([1.0, 1.0]))
    for streamed in ("true", "false"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["solve", "--scores", str(tmp_path / "losses.parquet"), "--streamed", streamed])
        assert stopped.value.code == 2 and "look like losses" in capsys.readouterr().err


# --- processes and threads --------------------------------------------------------------------

SETTINGS = (dict(epsilon=0.1), dict(epsilon=0.3, max_weight=2.0), dict(epsilon=0.1, gamma=14.1))


def solutions(g, c):
    return [solve_dual(g, c, **settings).lambda_ for settings in SETTINGS]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_does_not_hang():
    rng = np.random.default_rng(4)
    g, c = -rng.gamma(2, 1, 300_000), 14 + rng.normal(size=300_000)
    torch.ones(1 << 20).exp()  # wakes threads that a child does not have
    expected = solutions(g, c)
    child = os.fork()
    if child == 0:
        os._exit(0 if solutions(g, c) == expected else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done and status == 0


def test_solves_at_the_same_time_do_not_touch_each_other():
    rng = np.random.default_rng(5)
    g, c = -rng.gamma(2, 1, (8, 40_000)), 14 + rng.normal(size=(8, 40_000))
    expected = [solutions(*rows) for rows in zip(g, c, strict=True)]
    found = [None] * 8
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, solutions(g[k], c[k]))) for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_parameters_of_less_precision_are_taken_at_their_value(kind):
    g = -np.random.default_rng(0).exponential(size=200)
    found = solve_dual(g, g + 2, epsilon=kind(0.5), gamma=kind(0.9), max_weight=kind(3.3))
    exact = solve_dual(
        g, g + 2, epsilon=float(kind(0.5)), gamma=float(kind(0.9)), max_weight=float(kind(3.3))
    )
    assert np.array_equal(found.weights, exact.weights)


def test_a_profile_takes_its_radii_from_any_iterable():
    assert robust_profile(G, map(float, ("0.1", "0.2"))).epsilon == [0.1, 0.2]
    for epsilons in (iter(()), np.array(0.1), torch.tensor(0.1), "0.1"):
        with pytest.raises(ValueError, match="epsilons must be a list of radii"):
            robust_profile(G, epsilons)
