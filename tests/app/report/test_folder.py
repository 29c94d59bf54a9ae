from pathlib import Path

import pytest

from jaxdq import InputError
from jaxdq.app.report import check_free, staged


def a_run(path: Path) -> Path:
    (path / "quantized").mkdir(parents=True)
    (path / "metrics.json").write_text("old")
    return path


def test_appears_whole(tmp_path):
    with staged(tmp_path / "run", overwrite=False) as folder:
        (folder / "a").write_text("new")
        assert not (tmp_path / "run").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "a").read_text() == "new"


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "run").mkdir()
    with staged(tmp_path / "run", overwrite=False) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "run" / "a").exists()


def test_a_failure_leaves_the_earlier_run(tmp_path):
    out = a_run(tmp_path / "run")
    with pytest.raises(RuntimeError), staged(out, overwrite=True) as folder:
        (folder / "metrics.json").write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (out / "metrics.json").read_text() == "old"


def test_replaces_a_run(tmp_path):
    out = a_run(tmp_path / "run")
    with staged(out, overwrite=True) as folder:
        (folder / "metrics.json").write_text("new")
    assert [path.name for path in out.iterdir()] == ["metrics.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_came_meanwhile_is_kept(tmp_path):
    with pytest.raises(InputError, match="not empty"), staged(tmp_path / "run", overwrite=False):
        a_run(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_refuses_a_run_without_force_a_file_and_other_things(tmp_path):
    with pytest.raises(InputError, match="--force"):
        check_free(a_run(tmp_path / "run"), overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_free(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="other than a run"):
        check_free(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="mount point"):
        check_free(Path("/proc"), overwrite=True)
    for name in ("[w4a8]", "a\\b"):
        with pytest.raises(InputError, match="which checkpoints can't be read"):
            check_free(tmp_path / name, overwrite=True)


def test_refuses_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write"), staged(tmp_path / "file" / "run", overwrite=False):
        pass
