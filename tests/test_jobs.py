"""Arms dealt to jobs: each is run once, and who ends last goes on to the report."""

import pytest

from klball.studies import jobs
from klball.studies.arms import TABLES, Arm, Options, table_path

ARMS = [Arm(name, name, {"epsilon": 0.0}) for name in "abc"]


@pytest.fixture
def ran(monkeypatch):
    """(seed, arm) of every arm that was trained; training leaves what a finished arm leaves."""
    units = []

    def scored(label, folder):
        for name in TABLES:
            path = table_path(folder, label, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def run_arm(arm, seed, data, folder, options, start):
        units.append((seed, arm.label))
        run = folder / f"seed-{seed}" / arm.folder
        (run / "checkpoint-3").mkdir(parents=True)
        (run / jobs.DONE_FILE).touch()
        scored(f"seed-{seed}/{arm.folder}/checkpoint-3", folder)

    monkeypatch.setattr(jobs, "run_arm", run_arm)
    monkeypatch.setattr(jobs, "score_model", lambda name, label, data, folder, options: scored(label, folder))
    return units


def job(index, folder, of=3, seeds=2):
    return jobs.others_have_arms(ARMS, {}, folder, Options(seeds=seeds, num_jobs=of, job_index=index), {})


def test_every_arm_of_every_seed_is_run_by_one_job_and_the_last_reports(ran, tmp_path, capsys):
    assert [job(index, tmp_path) for index in (1, 0, 2)] == [True, True, False]
    assert sorted(ran) == [(seed, name) for seed in range(2) for name in "abc"]
    first, second = capsys.readouterr().out.splitlines()
    assert "job 1 of 3 is done; 4 of 6 arms" in first and "job 0 of 3 is done; 2 of 6 arms" in second


@pytest.mark.parametrize("missing", ["seed-1/b/top_weighted.csv", "scores/seed-0/c/checkpoint-3/ood.parquet"])
def test_an_arm_without_its_last_file_is_not_finished(missing, ran, tmp_path):
    job(0, tmp_path, of=2, seeds=2)
    assert not job(1, tmp_path, of=2, seeds=2)
    (tmp_path / missing).unlink()
    assert job(7, tmp_path, of=8, seeds=2)


def test_without_the_base_there_is_no_report_yet(ran, tmp_path, capsys):
    assert job(1, tmp_path, of=2, seeds=0)
    assert not job(0, tmp_path, of=2, seeds=0)


def test_a_job_alone_leaves_all_to_the_study(ran, tmp_path):
    assert not job(0, tmp_path, of=1)
    assert not ran
