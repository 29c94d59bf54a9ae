import pytest

from jaxdq._common.folders import bytes_on_disk, state_beside


@pytest.mark.parametrize("learned", [True, False])
def test_state_outlives_a_run_that_was_stopped_only_if_something_was_learned(tmp_path, learned):
    with pytest.raises(KeyboardInterrupt), state_beside(tmp_path / "run") as state:
        (state / "3" if learned else state).mkdir(parents=True)
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
