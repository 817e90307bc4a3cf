"""What a radius means, and bounds on the population's worst case: exact formulas, enumeration, simulation."""

import dataclasses
import math
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq, minimize_scalar
from scipy.special import rel_entr

import klball
from klball.adversary.upweighting import radius_in_words
from klball.commands import solve, train
from klball.commands.certified import cell, certain
from klball.scores.certified import LONGEST, band, limit, staying_below
from observed_commands import rows, table


def bernoulli(q, p):
    """KL of two coins."""
    return float(rel_entr(q, p) + rel_entr(1 - q, 1 - p))


@pytest.mark.parametrize("share", [1e-9, 0.01, 0.2, 0.9])
@pytest.mark.parametrize("epsilon", [1e-6, 0.05, 0.5, 3.0, 30.0])
def test_upweighting_inverts_the_bernoulli_divergence(epsilon, share):
    most = 1 / share
    if epsilon < -math.log(share):
        most = brentq(lambda m: bernoulli(min(1.0, m * share), share) - epsilon, 1.0, most, xtol=1e-13)
    assert klball.upweighting(epsilon, share) == pytest.approx(most, rel=1e-6)
    assert klball.upweighting(epsilon, share, max_weight=1.5) == pytest.approx(min(1.5, most), rel=1e-6)


def test_upweighting_at_its_ends():
    assert klball.upweighting(0.0, 0.3) == pytest.approx(1) == klball.upweighting(2.0, 1.0)
    assert klball.upweighting(-math.log(0.25), 0.25) == pytest.approx(4)
    for bad in (0, -0.1, 1.1, math.nan, None, True, "half"):
        with pytest.raises(ValueError, match="share must be"):
            klball.upweighting(0.1, bad)
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="epsilon must be"):
            klball.upweighting(bad, 0.1)
    with pytest.raises(ValueError, match="max_weight"):
        klball.upweighting(0.1, 0.1, max_weight=0.5)


def test_a_radius_in_words():
    assert radius_in_words(0.05).endswith("1, 5 or 20 % of the data may count up to 5.5, 2.6 or 1.7 times")
    assert radius_in_words(0.05, 2.0).endswith("up to 2, 2 or 1.7 times")


# --- 0/1 scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 9), (1, 1), (5, 9), (97, 100), (300, 300)])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.5, 9.0])
def test_accuracy_is_certified_by_clopper_and_pearson(hits, n, epsilon):
    found = klball.certified_worst_case([1] * hits + [0] * (n - hits), epsilon, confidence=0.9)
    share = stats.binomtest(hits, n, alternative="greater").proportion_ci(0.9, "exact").low
    for p, value in ((share, found.lower), (hits / n, found.worst_case)):
        if p == 0 or (p < 1 and epsilon >= -math.log1p(-p)):
            worst = 0.0
        elif p == 1 or epsilon == 0:
            worst = p
        else:
            worst = brentq(lambda q, p=p: bernoulli(q, p) - epsilon, 0.0, p, xtol=1e-14)
        assert value == pytest.approx(worst, abs=1e-8)
    assert (found.method, found.n) == ("clopper-pearson", n)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_coverage_of_accuracies_is_exactly_what_was_asked_for(n):
    """Summed over all samples of a coin."""
    lowers = [klball.certified_worst_case([1] * k + [0] * (n - k), 0.05).lower for k in range(n + 1)]
    for p in (0.02, 0.3, 0.5, 0.8, 0.97, 0.999):
        worst = 1 - (1 - p) * klball.upweighting(0.05, 1 - p)
        held = stats.binom.pmf(range(n + 1), n, p) @ (np.array(lowers) <= worst + 1e-12)
        assert held >= 0.95 - 1e-12


def test_two_values_may_be_true_and_false_or_any_bounds():
    found = klball.certified_worst_case(np.array([True, True, False]), 0.1)
    scaled = klball.certified_worst_case([5.0, 5.0, -3.0], 0.1, bounds=(-3, 5))
    assert (scaled.lower + 3) / 8 == pytest.approx(found.lower)


# --- bounded scores -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_the_chance_to_stay_below_is_stecks_determinant(n):
    edge = np.sort(np.random.default_rng(n).uniform(0.2, 1, n))
    matrix = [
        [edge[i] ** (j - i + 1) / math.factorial(j - i + 1) if j - i + 1 >= 0 else 0.0 for j in range(n)]
        for i in range(n)
    ]
    exact = math.factorial(n) * np.linalg.det(np.array(matrix))
    assert staying_below(edge, np.arange(1, n + 1), n) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "delta"), [(1, 0.05), (40, 0.05), (40, 0.5), (700, 0.1), (3_000, 0.05)])
def test_a_band_holds_as_often_as_it_says(n, delta):
    ranks, edge = band(n, delta)
    draws = 2_000
    uniform = np.sort(np.random.default_rng(1).random((draws, n)), axis=1)[:, ranks - 1]
    held = int((uniform <= edge).all(axis=1).sum())
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], draws, 1 - delta)
    assert low <= held <= high
    assert staying_below(edge, ranks, n) >= 1 - delta - 1e-12


def test_beyond_the_longest_a_union_bound_does():
    ranks, edge = band(LONGEST + 1, 0.05)
    assert edge == pytest.approx(stats.beta.isf(0.05 / len(ranks), ranks, LONGEST + 2 - ranks))


@pytest.mark.parametrize("epsilon", [0.02, 0.4, 2.0])
def test_a_bound_is_the_worst_case_of_the_smallest_distribution_in_the_band(epsilon):
    scores = np.random.default_rng(3).beta(6, 2, size=60) * 4 - 1
    found = klball.certified_worst_case(scores, epsilon, bounds=(-1, 3))
    ranks, edge = band(60, 1 - found.confidence)
    values, mass = np.append(-1.0, np.sort(scores)[ranks - 1]), np.diff(edge, prepend=0.0, append=1.0)

    def negative_dual(log_lambda):
        lambda_ = math.exp(log_lambda)
        return lambda_ * math.log(mass @ np.exp(-(values + 1) / lambda_)) + lambda_ * epsilon + 1

    assert found.lower == pytest.approx(-minimize_scalar(negative_dual, (-2, 0)).fun, abs=1e-6)
    assert found.method == "band" and -1 <= found.lower < found.worst_case < found.mean


POPULATIONS = {
    "coins": lambda rng, n: 1.0 * (rng.random(n) < 0.9),
    "halves": lambda rng, n: rng.choice([0, 0.5, 1], n, p=[0.1, 0.2, 0.7]),
    "beta": lambda rng, n: rng.beta(5, 1, n),
    "few bad": lambda rng, n: np.where(rng.random(n) < 0.03, 0.1 * rng.random(n), 1 - 0.2 * rng.random(n)),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_bounds_hold_for_the_population(name):
    draw, rng, draws = POPULATIONS[name], np.random.default_rng(0), 100
    truth = {e: klball.certified_worst_case(draw(rng, 200_000), e).worst_case for e in (0.05, 1.0)}
    held = dict.fromkeys(truth, 0)
    for _ in range(draws):
        scores = draw(rng, 50)
        for epsilon, worst in truth.items():
            held[epsilon] += (
                klball.certified_worst_case(scores, epsilon, confidence=0.8).lower <= worst + 1e-3
            )
    assert min(held.values()) >= stats.binom.ppf(1e-4, draws, 0.8)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [1, 20])
def test_constant_scores(value, n):
    for epsilon in (0.0, 0.3, 50.0):
        found = klball.certified_worst_case([value] * n, epsilon)
        assert 0 <= found.lower <= found.worst_case == pytest.approx(value)
    assert found.lower == 0  # beyond −log of any mass, nothing is known
    more = [klball.certified_worst_case([value] * n, 0.1, confidence=c).lower for c in (0.99, 0.9, 0.5)]
    assert more == sorted(more)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(scores=[]), "non-empty"),
        (dict(scores=[[1.0, 0.0]]), r"must be \[n\]"),
        (dict(scores=[1.0, math.nan]), "NaN"),
        (dict(scores=["good"]), "not an array of numbers"),
        (dict(scores=[0.5, 2.0, -1.0]), "2 of 3 scores lie outside the bounds 0 to 1.*first is 2 in row 2"),
        (dict(bounds=(0, math.inf)), "bounds must be two finite numbers"),
        (dict(bounds=(1, 0)), "the lower first"),
        (dict(bounds=None), "bounds must be"),
        (dict(bounds=(0, 1, 2)), "bounds must be"),
        (dict(epsilon=-1), "epsilon must be"),
        (dict(epsilon=math.nan), "epsilon must be"),
        (dict(confidence=1.0), "confidence must be"),
        (dict(confidence=95), "confidence must be"),
        (dict(confidence=math.nan), "confidence must be"),
    ],
)
def test_refusals(arguments, said):
    with pytest.raises(ValueError, match=said):
        klball.certified_worst_case(**{"scores": [1.0], "epsilon": 0.1, **arguments})


def test_sentences_round_down_and_say_when_nothing_is_known():
    found = klball.certified_worst_case([1] * 93 + [0] * 7, 0.05)
    said = found.sentence("accuracy")
    number = float(said.partition("at least ")[2].split()[0])
    assert number <= found.lower < number + 0.001
    assert said.startswith("with 95 % confidence, accuracy is at least")
    assert "on every mix of prompts within ε = 0.05 nats of yours" in said
    nothing = klball.certified_worst_case([1, 0], 0.5, confidence=0.9).sentence("accuracy", "pairs")
    assert nothing == (
        "with 90 % confidence, 2 pairs do not show that accuracy is above 0 on every mix of pairs within "
        "ε = 0.5 nats of yours"
    )


@pytest.mark.parametrize("loss", [False, True])
def test_a_shown_bound_is_never_beyond_the_bound(loss):
    """Of cells and of sentences, whatever the scale: a lower bound is shown no higher, an upper no lower."""
    draws = np.random.default_rng(0).normal(size=2_000)
    for value in [
        *draws,
        *(1_000 + draws[:200]),
        *(1e-7 * draws[:200]),
        0.0,
        0.99996,
        1.0,
        -0.99996,
        99_999.7,
    ]:
        shown = Fraction(limit(value, least=not loss))
        assert shown >= Fraction(value) if loss else shown <= Fraction(value)
        assert abs(shown - Fraction(value)) <= abs(Fraction(value)) / 1000
    for low, high in ((0.0, 1.0), (1_000.0, 1_001.0), (-2e-6, 3e-6), (0.0, 7e6)):
        values = low + (high - low) * np.random.default_rng(1).beta(9, 1, size=150)
        for epsilon in (0.0, 0.01, 0.05, 0.3):
            found = klball.certified_worst_case(values, epsilon, (low, high))
            text = found.sentence("s", loss=loss).partition("at most " if loss else "at least ")[2].split()[0]
            shown = -Fraction(text) if loss else Fraction(text)
            assert shown <= Fraction(found.lower) < shown + Fraction((high - low) / 1e2)


def test_cells_and_tables_show_bounds_so():
    row = {"value": 1.0, "low": math.nan, "high": math.nan, "certified": 0.91237}
    assert cell(row) == "1 (≥ 0.9123)"


# --- what commands say --------------------------------------------------------------------------

COMMANDS = ("solve", "compare", "scan", "reproduce")
CONFIGS = ("RobustSFTConfig", "RobustDPOConfig", "RobustRewardConfig", "GDPOConfig", "RobustGRPOConfig")


@pytest.mark.parametrize("owner", [*COMMANDS, *CONFIGS])
def test_wherever_a_radius_is_asked_for_its_meaning_is_told(owner):
    config = owner in CONFIGS
    cls = getattr(klball, owner) if config else import_module(f"klball.commands.{owner}").Options
    names = {"radius"} if owner == "RobustGRPOConfig" else {"epsilon", "epsilons"}
    helps = [f.metadata["help"] for f in dataclasses.fields(cls) if f.name in names]
    assert helps and all("may count up to" in text and " %%" in text for text in helps)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "may count up to 5.5, 2.6 or 1.7 times"),
        ({"epsilon": 0.5, "max_weight": 4.0}, "may count up to 4, 4 or 3.3 times"),
        ({"epsilon": 0.0}, None),
        ({"ambiguity": "chi2"}, None),
        ({"ambiguity": "cvar", "alpha": 0.2}, None),
    ],
)
def test_training_begins_with_what_its_radius_means(settings, said, tmp_path, monkeypatch, capsys):
    for name in ("training_and_evaluation_rows", "write_training_page"):
        monkeypatch.setattr(f"klball.commands.train.{name}", lambda *given, **named: (None, None))
    monkeypatch.setattr("klball.commands.train.train", lambda *given, begin, **named: begin())
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    train.main([*words, "--output_dir", str(tmp_path)], "klball train")
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed if said else "may count" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--confidence", "0.9"], "--confidence has no effect without --bounds: the log-likelihood has none"),
        (["--confidence", "95"], "--confidence must be above 0 and below 1, not 95"),
        (["--bounds", "-9", "0", "1"], "--bounds needs two numbers, LOW HIGH, not 3"),
        (["--bounds", "0", "-9"], "the lower first"),
        (["--bounds", "-1", "0"], "lie outside the bounds"),
        (["--bounds", "-9", "0", "--streamed", "true"], "--bounds has no effect with --streamed"),
    ],
)
def test_what_solve_cannot_certify_is_refused(words, said, tmp_path):
    table(None, None, rows(), output=tmp_path / "scores.parquet")
    with pytest.raises(ValueError, match=said):
        solve.main(["--scores", str(tmp_path / "scores.parquet"), *words], "klball solve")


def test_solve_says_what_is_certain_or_why_nothing_is(tmp_path, capsys):
    path = str(tmp_path / "scores.parquet")
    g = np.array(table(None, None, rows(), output=tmp_path / "scores.parquet")["log_likelihood"][:])
    solve.main(["--scores", path], "klball solve")
    said = " ".join(capsys.readouterr().out.split())
    assert "the log-likelihood has no bounds that klball knows" in said and "may count up to 5.5" in said
    solve.main(["--scores", path, "--bounds", "-9", "0", "--confidence", "0.5"], "klball solve")
    sentence = klball.certified_worst_case(g, 0.05, (-9, 0), 0.5).sentence("the log-likelihood", "rows")
    assert sentence in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("confidence", "shown"),
    [
        (0.95, "95 %"),
        (0.5, "50 %"),
        (0.6827, "68.27 %"),
        (0.9545, "95.45 %"),
        (0.005, "0.5 %"),
        (0.1 + 0.2, "30 %"),
        (0.999, "99.9 %"),
        (0.9999999, "99.99999 %"),
        (1 - 2**-53, "99.99999999999999 %"),
    ],
)
def test_a_confidence_is_never_rounded_up(confidence, shown):
    found = klball.certified_worst_case([1, 1, 0, 1], 0.05, confidence=confidence)
    assert found.sentence().startswith(f"with {shown} confidence")
    assert certain(confidence).endswith(f", {shown} confidence)")


def test_scores_in_any_container_are_those_of_a_list():
    right = [1, 1, 0, 1, 1, 1, 0, 1]
    expected = klball.certified_worst_case(right, 0.05)
    for scores in (
        torch.tensor(right, dtype=torch.bfloat16),
        torch.tensor(right, dtype=torch.float32, requires_grad=True),
        torch.tensor(right, dtype=torch.bool),
        np.array(right, dtype=bool),
        [bool(score) for score in right],
        np.ma.masked_array(right),
    ):
        assert klball.certified_worst_case(scores, 0.05) == expected
    for scores in (
        np.ma.masked_array(np.array(right, dtype=bool), mask=right),
        np.ma.masked_array(right, mask=right),
    ):
        with pytest.raises(ValueError, match="scores has masked values"):
            klball.certified_worst_case(scores, 0.05)
    for scores in (torch.ones(3, device="meta"), torch.ones(3).to_sparse()):
        with pytest.raises(ValueError, match="pass a dense tensor"):
            klball.certified_worst_case(scores, 0.05)
