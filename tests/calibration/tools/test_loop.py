import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdq import InputError
from jaxdq._common import folders
from jaxdq.calibration.tools.loop import SAVE_EVERY, learn
from jaxdq.checkpoint import has_state, restore_state, save_state

OPTIMIZER = optax.adam(0.1)
NUM_UPDATES = 2 * SAVE_EVERY + SAVE_EVERY // 2


class Info(NamedTuple):
    loss: jax.Array
    norm: jax.Array


def update(state, batch):
    """Adam on a valley that the batch tilts: every bit of the state depends on every update before."""
    params, opt_state, count = state
    loss, gradient = jax.value_and_grad(lambda p: jnp.sum(jnp.sin(p * batch) ** 2) + jnp.sum(p**2))(params)
    change, opt_state = OPTIMIZER.update(gradient, opt_state)
    return (optax.apply_updates(params, change), opt_state, count + 1), Info(loss, jnp.sqrt(jnp.sum(gradient**2)))


def initial():
    params = jnp.linspace(-1.0, 2.0, 5)
    return params, OPTIMIZER.init(params), jnp.zeros((), jnp.int32)


def batch_of(index):
    return jnp.asarray(np.random.default_rng(index).standard_normal(5), jnp.float32)


def run(folder=None, num_updates=NUM_UPDATES, batch_of=batch_of, update=update):
    return learn(update, initial(), batch_of, num_updates, label="toy", checkpoint=folder)


def assert_same_bits(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert left.dtype == right.dtype and np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture(scope="module")
def unbroken():
    return run()


def test_oracle_the_loop_is_the_loop(unbroken):
    state, expected = initial(), []
    step = jax.jit(update)
    for index in range(NUM_UPDATES):
        state, info = step(state, batch_of(index))
        expected.append(info)
    assert_same_bits(unbroken[0], state)
    assert_same_bits(unbroken[1].infos, jax.device_get(expected))
    assert all(isinstance(info.loss, np.ndarray) for info in unbroken[1].infos)


def test_compiles_once():
    traces = []
    run(update=lambda state, batch: traces.append(1) or update(state, batch), num_updates=5)
    assert len(traces) == 1


def test_no_updates_leave_the_state():
    state, history = run(num_updates=0)
    assert_same_bits(state, initial())
    assert history == ([], [])


def test_a_checkpoint_changes_nothing_and_a_second_call_goes_on(unbroken, tmp_path):
    short, _ = run(tmp_path / "deep" / "state", SAVE_EVERY)
    assert_same_bits(run(tmp_path / "deep" / "state"), unbroken)
    assert int(short[2]) == SAVE_EVERY
    assert [child.name for child in (tmp_path / "deep").iterdir()] == ["state"]


# --- A kill ----------------------------------------------------------------------------------------------------------


def die(folder, when):
    """Runs in a process of its own, which SIGKILL ends: no handler and no `finally` sees it."""
    moves, rename = [], Path.rename

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(source, target):
        moves.append("away" if str(source) == folder else "in")
        if (when, moves) == ("between the renames", ["in", "away", "in"]):
            kill()
        return rename(source, target)

    def exchanged(one, two):
        if when == "before the exchange":
            kill()
        return False  # as where the system has no such step: the old state moves away, then the new one in

    Path.rename, folders.exchange = counted, exchanged
    batch = (
        (lambda index: kill() if index == SAVE_EVERY + 7 else batch_of(index)) if when == "in an update" else batch_of
    )
    run(folder, batch_of=batch)


WHEN = ("in an update", "before the exchange", "between the renames")


def die_each_way(folder):
    """One process imports JAX, and one forked from it for each way is killed: before a backend has threads."""
    for when in WHEN:
        child = os.fork()
        if not child:
            die(str(Path(folder) / when), when)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, when


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    found, call = f"sys.path[:0] = [{str(Path(__file__).parent)!r}]", f"test_loop.die_each_way({str(folder)!r})"
    program = f"import sys; {found}; import test_loop; {call}"
    # The same bits need the same compiler.
    compiler = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations")))}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=os.environ | compiler, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("when", WHEN)
def test_resumes_to_the_same_bits_after_a_kill(when, unbroken, killed):
    assert (killed / when).exists() == (when != "between the renames")
    assert has_state(killed / when)  # puts back what had been moved away
    assert restore_state(killed / when, initial())[0] == SAVE_EVERY
    assert_same_bits(run(killed / when), unbroken)


def judged(folder=None, num_updates=2 * SAVE_EVERY):
    return learn(
        update,
        initial(),
        batch_of,
        num_updates,
        label="toy",
        checkpoint=folder,
        judge=lambda state: float(jnp.sum(state[0] ** 2)) / 3,
        judge_every=7,
    )


@pytest.mark.parametrize("seen", [SAVE_EVERY, 2 * SAVE_EVERY])
def test_what_the_log_says_is_what_an_unbroken_run_says(seen, tmp_path):
    """Where the last state was kept before the kill, too: what comes after the loop may have failed."""
    unbroken = judged()
    assert len(unbroken[1].infos) == 2 * SAVE_EVERY and len(unbroken[1].errors) == 1 + 2 * SAVE_EVERY // 7 + 1
    judged(tmp_path / "state", seen)
    state, history = judged(tmp_path / "state")
    assert_same_bits(state, unbroken[0])
    if seen == SAVE_EVERY:  # the shorter run asked once more, at its end
        assert set(unbroken[1].errors) < set(history.errors)
    else:
        assert history.errors == unbroken[1].errors
    assert_same_bits(history.infos, unbroken[1].infos)


def test_a_damaged_state_is_refused(tmp_path):
    run(tmp_path / "state")
    for file in sorted(file for file in (tmp_path / "state").rglob("*") if file.is_file()):
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(InputError, match="remove the folder and run again"):
            run(tmp_path / "state")
        file.write_bytes(before)


def test_a_state_of_another_loop_is_refused(tmp_path):
    save_state(tmp_path / "state", 3, jnp.zeros(4))
    with pytest.raises(InputError, match=r"remove the folder and run again"):
        run(tmp_path / "state")
    save_state(tmp_path / "state", 3, jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, 1), leaf.dtype), initial()))
    with pytest.raises(InputError, match="belongs to another run; remove the folder and run again"):
        run(tmp_path / "state")


# --- NaN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_names_the_quantity_and_the_update_and_keeps_the_last_good_state(bad, tmp_path):
    def broken(state, batch):
        state, info = update(state, batch)
        return state, info._replace(norm=jnp.where(state[2] == SAVE_EVERY + 4, bad, info.norm))

    with pytest.raises(InputError, match=f"'norm' became NaN or infinite in update {SAVE_EVERY + 3} of 'toy'"):
        run(tmp_path / "state", update=broken)
    done, state, _ = restore_state(tmp_path / "state", initial())
    assert done == SAVE_EVERY
    assert_same_bits(state, run(num_updates=SAVE_EVERY)[0])


@pytest.mark.parametrize("last", [SAVE_EVERY, SAVE_EVERY + 3])
def test_a_state_that_becomes_nan_is_neither_kept_nor_returned(last, tmp_path):
    # The loss is a number and its gradient is not, as of a square root at 0: only the next info would show it.
    def broken(state, batch):
        (params, opt_state, count), info = update(state, batch)
        return (jnp.where(count == last, jnp.nan, params), opt_state, count), info

    with pytest.raises(InputError, match=f"became NaN .*in update {last - 1} of 'toy'"):
        run(tmp_path / "state", last, update=broken)
    kept = (last - 1) // SAVE_EVERY * SAVE_EVERY
    assert (tmp_path / "state").exists() == (kept > 0)
    if kept:
        assert np.isfinite(restore_state(tmp_path / "state", initial())[1][0]).all()


def test_infinity_in_a_state_is_allowed(tmp_path):
    # Such as the best loss so far, before there is one.
    state, _ = learn(lambda s, b: (s, b), jnp.array([jnp.inf]), lambda i: jnp.float32(i), SAVE_EVERY, label="toy")
    assert np.isinf(state).all()


def test_progress_is_silent_where_nobody_watches(capfd):
    run(num_updates=2)
    assert capfd.readouterr() == ("", "")


def test_batches_are_asked_for_by_index_alone():
    asked = []
    run(num_updates=3, batch_of=lambda index: asked.append(index) or batch_of(index))
    assert asked == [0, 1, 2]
