"""Every calibrator keeps to what it says of itself. A new one is one row of CALIBRATORS."""

import functools
import inspect

import jax
import numpy as np
import pytest
from toys import Line, given, toy_denoiser

from jaxdq import InputError, Rule, Scheme, calibration, ddim
from jaxdq.calibration import (
    RangeSettings,
    Recipe,
    ReconstructionSettings,
    SearchSettings,
    compensate_rounding,
    correct_noise,
    correct_trajectory,
    fit_progressively,
    fit_weights,
    learn_ranges,
    measure_sensitivity,
    observe,
    reconstruct,
    refit_ranges,
    relax_activations,
    run_recipe,
    search_groups,
    select_timesteps,
    share_by_price,
    share_optimally,
    share_uniformly,
    spend_budget,
    tabulate_time,
    uniform_timesteps,
)
from jaxdq.calibration.tools import loop
from jaxdq.grid import Grid
from jaxdq.linen import Acts, Instead
from jaxdq.observers import minmax, minmax_weights, mse

KEY = jax.random.key(0)
GROUPS, UPDATES = 2, 4
CALIBRATORS = {
    one.name: one
    for one in (
        fit_weights(minmax_weights()),
        select_timesteps(uniform_timesteps(), 4),
        observe(mse(2.0, 8)),
        measure_sensitivity(num_images=2, num_draws=1),
        share_uniformly(GROUPS),
        share_by_price(GROUPS),
        share_optimally(GROUPS),
        search_groups(GROUPS, SearchSettings(num_updates=UPDATES, moves=1)),
        refit_ranges(),
        learn_ranges(RangeSettings(num_updates=UPDATES, judge_every=2, rows=3)),
        compensate_rounding(num_images=2),
        spend_budget(0.9, minmax_weights(), "bit-operations", num_rows=3, tries=1),
        correct_noise(num_images=4),
        correct_trajectory(num_images=4),
        tabulate_time(),
        fit_progressively(minmax(), num_images=4),
        relax_activations(num_images=4),
        reconstruct(ReconstructionSettings(num_updates=UPDATES, num_states=6, rows=3)),
    )
}
LEARNS = ("search_groups", "learn_ranges", "reconstruct")  # keep their state in a folder
PLANS = {"spend_budget"}  # change the bits of weights
GOES_ON = {
    "learn_ranges",
    "correct_noise",
    "correct_trajectory",
    "fit_progressively",
    "relax_activations",
}  # from where the last run ended: a second run is no repetition
RULES = [Rule("one|two", Scheme(4, channel_axis=-1), Scheme(4, symmetric=False)), Rule(".*", reason="an end")]

every_calibrator = pytest.mark.parametrize("name", CALIBRATORS)


def recipe(*calibrators):
    return Recipe("toy", lambda sites: RULES, calibrators)


@functools.cache
def known():
    """Work that knows everything."""
    names = ("fit_weights", "select_timesteps", "observe", "measure_sensitivity", "share_uniformly")
    calibrators = [CALIBRATORS[name] for name in names]
    return run_recipe(toy_denoiser(Line()), recipe(*calibrators), sampler=ddim(3), key=KEY, num_images=4)


def before(one):
    """Work that knows what the calibrator needs, and nothing else."""
    work, needed = known(), set(one.needs)
    assert needed <= {Grid, Acts, *work.facts}, "a fact that no calibrator before it gives here"
    work = work._replace(facts={kind: fact for kind, fact in work.facts.items() if kind in needed}, log=())
    return work.deciding(
        weights=work.calib.weights if Grid in needed else {}, acts=work.calib.acts if Acts in needed else None
    )


@functools.cache
def after(name):
    return CALIBRATORS[name](before(CALIBRATORS[name]), KEY)


def kinds_of(work):
    grids = [kind for kind, is_known in ((Grid, work.calib.weights), (Acts, work.calib.acts)) if is_known]
    return {*work.facts, *grids}


def assert_same_bits(one, two):
    assert set(one.facts) == set(two.facts)
    for left, right in [(one.calib, two.calib), *((one.facts[kind], two.facts[kind]) for kind in one.facts)]:
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            if hasattr(a, "dtype"):  # observers are functions
                assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_every_calibrator_has_its_row():
    public = {name for name, value in vars(calibration).items() if hasattr(value, "__wrapped__")}
    assert public and public == set(CALIBRATORS)


@every_calibrator
def test_gives_what_it_says_of_nothing_but_what_it_needs(name):
    one, work = CALIBRATORS[name], after(name)
    # Wider activations stay only where images come closer.
    assert kinds_of(work) == {*one.needs, *one.gives} - {Instead}
    assert work.problem is known().problem and work.plan.columns == known().plan.columns
    assert name in PLANS or work.plan == known().plan
    assert all(isinstance(entry, str) and isinstance(numbers, dict) for entry, numbers in work.log)


@every_calibrator
def test_settings_are_all_that_it_was_made_with(name):
    one = CALIBRATORS[name]
    assert list(one.settings) == list(inspect.signature(getattr(calibration, name)).parameters)
    assert one.name == name


@pytest.mark.parametrize(
    ("name", "missing"), [(name, kind) for name, one in CALIBRATORS.items() for kind in one.needs], ids=str
)
def test_is_refused_without_what_it_needs(name, missing):
    one = CALIBRATORS[name]
    others = given("others", *(kind for kind in one.needs if kind is not missing))
    with pytest.raises(InputError, match=rf"recipe 'toy' can't work: '{name}' needs .*; put .* before it"):
        run_recipe(toy_denoiser(Line()), recipe(others, one), sampler=ddim(3), key=KEY)


@pytest.mark.parametrize("name", [name for name, one in CALIBRATORS.items() if one.precedes])
def test_is_refused_after_what_it_would_make_stale(name):
    one = CALIBRATORS[name]
    with pytest.raises(InputError, match=rf"recipe 'toy' can't work: '{name}' comes after .*; put it before"):
        run_recipe(
            toy_denoiser(Line()), recipe(given("others", *one.needs, *one.precedes), one), sampler=ddim(3), key=KEY
        )


@pytest.mark.parametrize("name", [name for name in CALIBRATORS if name not in GOES_ON])
def test_a_second_run_with_the_same_key_changes_no_bit(name, tmp_path):
    again = CALIBRATORS[name](after(name).with_machine(folder=tmp_path / name), KEY)
    assert_same_bits(again, after(name))
    assert name in LEARNS or not (tmp_path / name).exists(), "state of a calibrator that LEARNS does not list"


@pytest.mark.parametrize("name", LEARNS)
def test_a_resumed_run_ends_in_the_same_bits(name, tmp_path, monkeypatch):
    one, save = CALIBRATORS[name], loop.save_state
    start = before(one).with_machine(folder=tmp_path / name)

    def killed(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "SAVE_EVERY", UPDATES // 2)
    monkeypatch.setattr(loop, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        one(start, KEY)
    assert list((tmp_path / name).iterdir())
    monkeypatch.setattr(loop, "save_state", save)
    resumed = one(start, KEY)
    assert_same_bits(resumed, after(name))
    assert resumed.log == after(name).log
    again = one(start, KEY)  # after a kill that came later, when all updates were done
    assert_same_bits(again, resumed)
    assert again.log == resumed.log
