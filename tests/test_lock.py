"""One run at a time in a folder, and nothing of that in the way of anything else."""

import os
import signal

import pytest

from klball.cli import main
from klball.commands.leftovers import no_leftovers
from klball.training.lock import LOCK_FILE, alone_in
from small_runs import SETTINGS, train


def in_another_process(work):
    """A forked process that has done `work` and waits."""
    done, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = work()  # noqa: F841  (a block that nobody holds is left)
            os.write(say, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(say)
    assert os.read(done, 1) == b"x"
    os.close(done)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def held(tmp_path):
    """A folder in which another process trains; it may have had time to begin, or not."""
    folder = tmp_path / "run"
    pid = in_another_process(alone_in(folder).__enter__)
    yield folder
    kill(pid)


def test_a_second_run_in_a_folder_is_one_line_and_touches_nothing(held, root, capsys):
    before = [*held.iterdir()]
    names = ("--model_name_or_path", root / "model", "--dataset_name", root / "rows.jsonl")
    with pytest.raises(SystemExit) as caught:
        main([*map(str, ("train", *names, *SETTINGS, "--output_dir", held))])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and [*held.iterdir()] == before
    assert f"another run is training in {held}: wait for it, or choose another --output_dir" in error


def test_the_refused_run_leaves_what_the_other_has_begun(held):
    with pytest.raises(ValueError, match="another run"), no_leftovers(held):
        (held / "run.json").write_text("{}")  # the other process does, since this one looked
        with alone_in(held):
            pass
    assert (held / "run.json").exists()


def test_a_killed_run_keeps_nobody_out_though_its_workers_live(tmp_path):
    def train_with_a_worker():
        folder = alone_in(tmp_path)
        folder.__enter__()
        if os.fork() == 0:
            signal.alarm(9)
            signal.pause()
        return folder

    kill(in_another_process(train_with_a_worker))
    assert (tmp_path / LOCK_FILE).exists()
    with alone_in(tmp_path):
        pass
    assert [*tmp_path.iterdir()] == []


def test_a_finished_run_is_only_read(finished, root, capsys):
    """Jobs that share a study ask for the same finished arms at once; its disk may be read-only."""
    pid = in_another_process(alone_in(finished).__enter__)
    train(root, finished)
    assert (finished / LOCK_FILE).exists()
    kill(pid)
    train(root, finished)
    assert not (finished / LOCK_FILE).exists()
    assert " ".join(capsys.readouterr().out.split()).count("already holds this run, finished") == 2


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, caplog):
    def unsupported(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with alone_in(tmp_path):
        assert "cannot be locked (Function not implemented)" in caplog.text
