"""What a run says of itself: tokens, progress, and a radius that is too large."""

import pytest

import preference_grid
from gradient_grid import paired_rows, trainer_for
from klball import KLBall
from small_runs import train, write_rows
from test_families import pair_rows


@pytest.mark.parametrize("arrangement", ["8x1", "packed", "padding-free"])
def test_tokens_are_counted_once_however_they_lie(arrangement, tmp_path):
    case = dict(objective="nll", ambiguity=KLBall(0.5), logging_steps=1)
    trainer, _ = trainer_for(case, arrangement, str(tmp_path), data=paired_rows())
    trainer.train()
    logged = [log["num_tokens"] for log in trainer.state.log_history if "num_tokens" in log]
    assert logged[-1] == sum(len(ids) for ids in trainer.samples["input_ids"])


@pytest.mark.parametrize(("epsilon", "times"), [(9.0, 1), (0.5, 0)])
def test_a_radius_that_leaves_steps_without_gradient_is_said_once(epsilon, times, tmp_path, caplog):
    trainer, _ = trainer_for(dict(objective="nll", ambiguity=KLBall(epsilon)), "4x1", str(tmp_path))
    trainer.train()
    assert caplog.text.count("steps without them have no gradient") == times


@pytest.mark.parametrize("quiet_bars", [False, True])
def test_the_first_scoring_shows_that_it_runs(quiet_bars, tmp_path, caplog, capfd):
    case = dict(objective="nll", ambiguity=KLBall(0.5), rescore_steps=2)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), disable_tqdm=quiet_bars)
    with caplog.at_level("INFO", "klball"):
        trainer.train()
    assert "scoring 22 rows before the first step" in caplog.text
    assert "scoring 22 rows again after step 2" in caplog.text
    bars = capfd.readouterr().err
    assert ("scoring before the first step" in bars) == (not quiet_bars)
    assert trainer.accountant.history[-1]["rescores"] == 1


@pytest.mark.parametrize("disabled", ["false", "true"])
@pytest.mark.parametrize("family", ["sft", "reward"])
def test_the_command_shows_its_first_scoring(family, disabled, root, tmp_path, capfd):
    write_rows(tmp_path / "pairs.jsonl", pair_rows(12))
    rows = root / "rows.jsonl" if family == "sft" else tmp_path / "pairs.jsonl"
    train(root, tmp_path / "o", "--family", family, "--max_steps", "1", "--disable_tqdm", disabled, rows=rows)
    bars = capfd.readouterr().err
    assert ("scoring before the first step:" in bars) == (disabled == "false")


@pytest.mark.parametrize("family", ["sft", "dpo", "reward"])
def test_the_main_process_alone_shows_bars(family, tmp_path, capfd):
    """Of all machines, not one of each."""
    if family == "sft":
        trainer, _ = trainer_for(dict(objective="nll", ambiguity=KLBall(0.5)), "8x1", str(tmp_path))
    else:
        case = dict(family=family, ambiguity=KLBall(0.5))
        trainer, _ = preference_grid.trainer_for(case, "8x1", str(tmp_path))
    trainer.args.disable_tqdm = False
    shown = []
    for main in (True, False):
        trainer.is_world_process_zero = lambda main=main: main
        capfd.readouterr()
        trainer.score_units("once")
        shown.append("scoring once" in capfd.readouterr().err)
    assert shown == [True, False]
