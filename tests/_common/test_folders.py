import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdq import InputError
from jaxdq._common import folders
from jaxdq._common.folders import building, bytes_on_disk, state_beside, write_whole


@pytest.mark.parametrize("learned", [True, False])
def test_state_outlives_a_run_that_was_stopped_only_if_something_was_learned(tmp_path, learned):
    with pytest.raises(KeyboardInterrupt), state_beside(tmp_path / "run") as state:
        (state / "3" if learned else state).mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt
    assert state.exists() == learned and state.parent == tmp_path
    with state_beside(tmp_path / "run") as again:
        assert again == state
    assert not state.exists()


def test_a_state_that_was_there_before_is_not_a_refused_run_to_remove(tmp_path):
    mark = tmp_path / ".run.state" / "run.json"
    mark.parent.mkdir()
    mark.touch()
    with pytest.raises(KeyboardInterrupt), state_beside(tmp_path / "run"):
        raise KeyboardInterrupt
    assert mark.exists()


def test_bytes_on_disk_are_of_all_files_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(b"123")
    (tmp_path / "a" / "b" / ".two").write_bytes(b"4567")
    assert bytes_on_disk(tmp_path) == 7


def whole(path, content):
    with building(path) as folder:
        (folder / "file").write_text(content)


def dead(part):
    """A folder that a process was killed in: nobody holds it."""
    part.mkdir()
    (part / "file").write_text("half")
    return part


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_new_folder_takes_the_place_of_the_old_one_and_leaves_nothing_beside(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(folders, "exchange", lambda one, two: False)
    for content in ("one", "two"):
        whole(tmp_path / "run", content)
        assert (tmp_path / "run" / "file").read_text() == content
    assert [child.name for child in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o777 & ~folders._umask()


def test_at_no_moment_is_there_nothing_at_the_place(tmp_path, monkeypatch):
    """Where the system exchanges two folders in one step, nothing is renamed."""
    whole(tmp_path / "run", "one")
    if not folders.exchange(tmp_path / "run", dead(tmp_path / "other")):
        pytest.skip("the system has no renameat2")
    monkeypatch.setattr(Path, "rename", lambda *args: pytest.fail("a rename"))
    whole(tmp_path / "run", "two")
    assert (tmp_path / "run" / "file").read_text() == "two"


def test_what_the_dead_have_left_is_removed_and_what_the_living_build_is_not(tmp_path):
    dead(tmp_path / ".run.abc.part")
    dead(tmp_path / f".run.{os.getpid()}.part")  # a process id says nothing: in a container it is always the same
    with building(tmp_path / "run") as mine:
        whole(tmp_path / "run", "other")
        assert mine.exists()
        (mine / "file").write_text("mine")
    assert (tmp_path / "run" / "file").read_text() == "mine"
    assert [child.name for child in tmp_path.iterdir()] == ["run"]


def test_the_last_whole_copy_is_put_back(tmp_path):
    """Killed between two renames, nothing stands at the place."""
    old = dead(tmp_path / ".run.abc.old")
    (old / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "run"):
        assert (tmp_path / "run" / "file").read_text() == "old"
        raise KeyboardInterrupt
    assert [child.name for child in tmp_path.iterdir()] == ["run"]


def test_links_that_somebody_planted_are_not_followed(tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "file").write_text("precious")
    (tmp_path / ".run.abc.part").symlink_to(target)
    (tmp_path / ".mark.part").symlink_to(target / "file")
    whole(tmp_path / "run", "new")
    write_whole(tmp_path / "mark", b"new")
    assert (target / "file").read_text() == "precious" and (tmp_path / "mark").read_text() == "new"


HOLD = """
import sys, time
from pathlib import Path
from jaxdq._common.folders import state_beside
with state_beside(Path(sys.argv[1])) as state:
    (state / "learned").mkdir()
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_works_on_a_run_and_a_dead_one_holds_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is at work on"), state_beside(tmp_path / "run"):
            pass
        assert (tmp_path / ".run.state" / "learned").exists()
        other.send_signal(signal.SIGKILL)
    with state_beside(tmp_path / "run") as state:
        assert (state / "learned").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        OSError(errno.EFBIG, "x"),
        ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device"),
    ],
    ids=str,
)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path, error):
    whole(tmp_path / "run", "one")
    with pytest.raises(InputError, match=r"'.*run' can't be written \(.*\); make room"), building(tmp_path / "run"):
        try:
            raise error
        except Exception as first:
            raise RuntimeError("a library's own") from first
    assert (tmp_path / "run" / "file").read_text() == "one"
    assert [child.name for child in tmp_path.iterdir()] == ["run"]


def test_what_does_not_fit_is_told_before_any_work(tmp_path, monkeypatch):
    whole(tmp_path / "run", "one")
    with pytest.raises(InputError, match=r"run/q' needs at least 1,000,000,000,000.0 MB and the disk has [\d,.]+ MB"):
        folders.check_room(tmp_path / "run" / "q", 10**18)
    folders.check_room(tmp_path / "nowhere" / "yet" / "run", 1)


def test_the_place_is_called_what_the_person_called_it(tmp_path):
    with pytest.raises(InputError, match=rf"'{tmp_path}/run/model' can't"), building(tmp_path / "run") as folder:
        with building(folder / "model"):
            raise OSError(errno.ENOSPC, "x")


def test_errors_that_are_not_the_disks_are_left_alone(tmp_path):
    with pytest.raises(ZeroDivisionError), building(tmp_path / "run"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
