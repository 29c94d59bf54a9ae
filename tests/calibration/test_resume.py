import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Tiny, given, toy_denoiser

from jaxdq import InputError, Rule, Scheme, calibrate, ddim, linear_schedule, recipes
from jaxdq.calibration import (
    Evidence,
    RangeSettings,
    Recipe,
    SearchSettings,
    Sensitivity,
    _calibrate,
    _groups,
    fit_weights,
    measure_sensitivity,
    observe,
    run_recipe,
    search_groups,
)
from jaxdq.calibration.tools import loop as _loop
from jaxdq.diffusion import Denoiser
from jaxdq.grid import qparams_from_range
from jaxdq.observers import _histogram as histogram
from jaxdq.observers import minmax_weights, mse

KEY = jax.random.key(0)
SHAPE = (2, 2, 2)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(2, name="second")(nn.tanh(nn.Dense(2, name="first")(x) + 0.1 * t))


def denoiser_of(params=None, **schedule):
    layer = {"kernel": jnp.array([[0.5, -1.0], [0.75, 0.3]]), "bias": jnp.array([0.1, -0.2])}
    params = params or {"first": layer, "second": layer}
    return Denoiser(Pair(), params, linear_schedule(12, 0.05, 0.4, **schedule), SHAPE)


DENOISER, SAMPLER = denoiser_of(), ddim(3)


# --- An interrupted search -------------------------------------------------------------------------------------------


# Histograms, as the price of a grid needs them, and grids that compile in no time.
RANGES = mse()._replace(
    qparams=lambda state, scheme: qparams_from_range(*histogram.full_range(state), scheme),
)


def once(function):
    """The first call's result, for ever: what comes before the search is the same for the same key (test_calibrate)."""
    results = []

    def cached(*args):
        results.extend([] if results else [function(*args)])
        return results[0]

    return cached


def searching():
    rules = [Rule(".*", Scheme(4, channel_axis=-1), Scheme(4, symmetric=False))]
    ranges = once(lambda work, key: observe(RANGES)(work, key).fact(Evidence))
    found = once(lambda work, key: measure_sensitivity()(work, key).fact(Sensitivity))
    calibrators = (
        fit_weights(minmax_weights()),
        given("observe", Evidence, run=lambda work, key: work.knowing(ranges(work, key))),
        given("measure_sensitivity", Sensitivity, run=lambda work, key: work.knowing(found(work, key))),
        search_groups(2, SearchSettings(num_updates=6)),
    )
    return Recipe("toy", lambda sites: rules, calibrators)


def test_an_interrupted_search_goes_on_and_ends_in_the_same_bits(tmp_path, monkeypatch):
    kept, updates, save, learn, recipe = [], [], _loop.save_state, _loop.learn, searching()

    def interrupted(path, update, *state):
        save(path, update, *state)
        kept.append(update)
        if len(kept) == 2:
            raise KeyboardInterrupt

    def counted(update, state, batch_of, *args, **kwargs):
        return learn(update, state, lambda index: updates.append(index) or batch_of(index), *args, **kwargs)

    def run(**kwargs):
        return calibrate(DENOISER, recipe, sampler=SAMPLER, key=KEY, num_images=2, **kwargs)

    monkeypatch.setattr(_groups, "learn", counted)
    monkeypatch.setattr(_groups, "price", once(_groups.price))
    monkeypatch.setattr(_groups, "image_error", lambda work: 0.0)
    monkeypatch.setattr(_loop, "SAVE_EVERY", 2)
    unbroken = run()
    monkeypatch.setattr(_loop, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path / "run")
    resumed = run(checkpoint_dir=tmp_path / "run")
    # 4 updates were kept, so 2 remained; the batches that they saw follow from the index.
    assert kept == [2, 4, 6] and updates == [0, 1, 2, 3, 4, 5, *range(4), 4, 5]
    assert jax.tree.structure(resumed) == jax.tree.structure(unbroken)
    for one, two in zip(jax.tree.leaves(unbroken), jax.tree.leaves(resumed), strict=True):
        assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()


# --- Whose state it is -----------------------------------------------------------------------------------------------


def start(folder, denoiser=DENOISER, recipe=None, *, sampler=SAMPLER, key=KEY, num_images=2, batch_size=2):
    """A run that claims the folder and is killed then."""
    recipe = recipe or recipes.adpdm(8, 8, 2)
    sizes = {"num_images": num_images, "batch_size": batch_size}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_calibrate, "trajectories", interrupt)
        calibrate(denoiser, recipe, sampler=sampler, key=key, checkpoint_dir=folder, **sizes)


def claim(*args):
    with pytest.raises(KeyboardInterrupt):
        start(*args)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def claimed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claimed") / "run"
    claim(folder)
    return folder


def test_the_same_run_may_come_back(claimed):
    claim(claimed)
    claim(str(claimed), denoiser_of())
    claim(claimed, DENOISER, recipes.adpdm(np.int64(8), 8, np.int32(2)))


class Plain:
    """No linen module, and no `__repr__`: Python's own has the object's address in it."""

    def apply(self, variables, *args):
        return Pair().apply(variables, *args)


def test_a_module_without_a_name_for_itself_is_known_again(tmp_path):
    for _ in range(2):
        claim(tmp_path / "run", dataclasses.replace(DENOISER, module=Plain()))


def test_a_checkpoint_dir_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file' can't hold what a calibration learns \(File exists\); give"):
        start(tmp_path / "file")


ADPDM = recipes.adpdm(8, 8, 2)


def of_ones_own(factor):
    return given("mine", run=lambda work, key: (work, factor))


def with_another_observer():
    return tuple(observe(mse(2.4)) if one.name == "observe" else one for one in ADPDM.calibrators)


OTHERS = {
    "key": {"key": jax.random.key(1)},
    "sampler": {"sampler": ddim(4)},
    "images": {"num_images": 3},
    "batches": {"batch_size": 1},
    "bits": {"recipe": recipes.adpdm(8, 6, 2)},
    "groups": {"recipe": recipes.adpdm(8, 8, 3)},
    "recipe": {"recipe": recipes.uniform_groups(8, 8, 2)},
    "observer": {"recipe": Recipe("adpdm", ADPDM.rules, with_another_observer())},
    "a closure": {
        "recipe": Recipe("adpdm", ADPDM.rules, (*ADPDM.calibrators, given("mine", run=lambda work, key: key)))
    },
    "search": {"recipe": recipes.adpdm(8, 8, 2, search=SearchSettings(num_updates=7))},
    "params": {"denoiser": denoiser_of(jax.tree.map(lambda leaf: 2 * leaf, DENOISER.params))},
    "schedule": {"denoiser": denoiser_of(clip_range=2.0)},
    "noise": {"denoiser": Denoiser(Pair(), DENOISER.params, linear_schedule(12, 0.04, 0.4), SHAPE)},
}


def test_what_a_calibrator_of_ones_own_closes_over_is_part_of_its_run(tmp_path):
    def with_factor(factor):
        return Recipe("adpdm", ADPDM.rules, (*ADPDM.calibrators, of_ones_own(factor)))

    claim(tmp_path / "run", DENOISER, with_factor(1))
    claim(tmp_path / "run", DENOISER, with_factor(1))
    with pytest.raises(InputError, match="holds the state of another run"):
        start(tmp_path / "run", recipe=with_factor(2))


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused(name, claimed):
    mark = (claimed / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"holds the state of another run; choose another .* or remove it"):
        start(claimed, **OTHERS[name])
    assert (claimed / "run.json").read_bytes() == mark


@pytest.mark.slow
def test_a_run_with_everything_behind_it_goes_on_to_the_same_bits_and_says_the_same(tmp_path, monkeypatch):
    """Grids of each step, relaxed activations and corrections follow from what was learned before the kill."""
    learning = RangeSettings(num_updates=6, judge_every=2, rows=3)
    recipe = recipes.chain(
        recipes.adpdm(4, 4, 2, search=SearchSettings(num_updates=6, moves=1), learning=learning),
        recipes.pcr(),
        recipes.ptqd(),
        recipes.tac(),
    )
    save, kept = _loop.save_state, []

    def killed(*args):
        save(*args)
        kept.append(args)
        if len(kept) == 2:
            raise KeyboardInterrupt

    def run(folder=None):
        sampler = ddim(4, eta=1.0)
        return run_recipe(toy_denoiser(Tiny()), recipe, sampler=sampler, key=KEY, num_images=4, checkpoint_dir=folder)

    monkeypatch.setattr(_loop, "SAVE_EVERY", 2)
    unbroken = run()
    monkeypatch.setattr(_loop, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.setattr(_loop, "save_state", save)
    for _ in range(2):  # and once more, as after a kill that came when all was learned
        again = run(tmp_path / "run")
        assert again.log == unbroken.log
        for one, two in zip(jax.tree.leaves(unbroken.calib), jax.tree.leaves(again.calib), strict=True):
            assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()
