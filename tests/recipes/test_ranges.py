"""One word for how ranges are chosen, in every recipe."""

import inspect

import pytest

from jaxdq import InputError
from jaxdq.calibration import RangeSettings
from jaxdq.recipes import adpdm, minmax, uniform_groups

RECIPES = [minmax, uniform_groups, adpdm]
every_recipe = pytest.mark.parametrize("make", RECIPES, ids=lambda make: make.__name__)
# word -> (ranges of weights, of activations, whether they are learned)
WORDS = {
    "minmax": ("minmax_weights()", "minmax()", False),
    "mse": ("mse_weights(num_candidates=80, p=2.4)", "mse(num_candidates=80, p=2.0)", False),
    "percentile": ("percentile_weights(p=99.9)", "percentile(tail=", False),
    "learned": ("mse_weights(num_candidates=80, p=2.4)", "mse(num_candidates=80, p=2.0)", True),
}


def by_name(recipe):
    return {one["name"]: one for one in recipe.settings["calibrators"]}


@every_recipe
@pytest.mark.parametrize("word", WORDS)
def test_the_word_reaches_weights_and_activations(make, word):
    weights, acts, is_learned = WORDS[word]
    found = by_name(make(ranges=word))
    assert found["fit_weights"]["weight_range"] == weights
    if make is adpdm and word == "minmax":  # its search needs histograms, of which 100% are min-max
        acts = "percentile(tail=0.0)"
    assert found["observe"]["observer"].startswith(acts)
    assert ("learn_ranges" in found) == is_learned


@every_recipe
def test_learned_ranges_come_last_and_take_their_settings(make):
    found = by_name(make(ranges="learned", learning=RangeSettings(num_updates=7)))
    assert list(found)[-1] == "learn_ranges" and found["learn_ranges"]["settings"]["num_updates"] == 7
    assert "measure_sensitivity" in found


def test_defaults():
    defaults = {make.__name__: inspect.signature(make).parameters["ranges"].default for make in RECIPES}
    assert defaults == {"minmax": "minmax", "uniform_groups": "mse", "adpdm": "learned"}


@every_recipe
@pytest.mark.parametrize("word", ["mean", "MSE", "", None, RangeSettings(), ["mse"]], ids=repr)
def test_unknown_ranges_are_refused(make, word):
    with pytest.raises(InputError, match=r"ranges is .*; give one of 'minmax', 'mse', 'percentile', 'learned'\.$"):
        make(ranges=word)


@every_recipe
@pytest.mark.parametrize("word", ["minmax", "mse", "percentile"])
def test_settings_of_a_learning_that_does_not_take_place_are_refused(make, word):
    with pytest.raises(InputError, match=f"ranges='{word}' learns nothing; give ranges='learned', or leave"):
        make(ranges=word, learning=RangeSettings())
    with pytest.raises(InputError, match="learning is 30; give a "):
        make(ranges="learned", learning=30)
