"""The command's compile cache, in child processes: JAX decides once per process whether it has one."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each a process of its own
PROGRAM = """
from jaxdq.app.compile_cache import use_compile_cache
use_compile_cache()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2 + 1)(1.0)
print(jax.config.values["jax_compilation_cache_dir"])
"""


def folder_of(tmp_path, **environment) -> str:
    """What the program says its cache is."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "JAXDQ_"))}
    env = {**inherited, "JAX_PLATFORMS": "cpu", "JAXDQ_CACHE": str(tmp_path / "jaxdq"), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
    assert "Error" not in done.stderr and "Warning" not in done.stderr
    return done.stdout.strip()


def programs(folder) -> list:
    return sorted(path.name for path in folder.rglob("*-cache"))


def test_programs_are_kept_and_halves_of_them_are_not(tmp_path):
    folder = folder_of(tmp_path)
    assert folder.startswith(str(tmp_path / "jaxdq" / "xla"))
    kept = programs(tmp_path)
    assert kept
    orphan = next(tmp_path.rglob("*-cache")).with_name("killed-cache")
    orphan.write_bytes(b"half")
    assert folder_of(tmp_path) == folder
    assert programs(tmp_path) == kept


@pytest.mark.parametrize(
    "environment", [{"JAXDQ_COMPILE_CACHE": "0"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}], ids=["ours", "jax"]
)
def test_it_is_switched_off(tmp_path, environment):
    assert folder_of(tmp_path, **environment) == "None"
    assert not programs(tmp_path)


def test_the_folder_that_jax_was_given_wins(tmp_path):
    own = tmp_path / "own"
    assert folder_of(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own)) == str(own)
    assert programs(own) and not (tmp_path / "jaxdq").exists()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    assert folder_of(tmp_path, JAXDQ_CACHE=str(tmp_path / "file" / "jaxdq")) == "None"


def test_a_switch_that_is_neither_is_refused(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        folder_of(tmp_path, JAXDQ_COMPILE_CACHE="off")
    assert "give 0 to switch the compile cache off" in error.value.stderr
