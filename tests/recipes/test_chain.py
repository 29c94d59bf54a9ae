import pytest

from jaxdq import InputError, recipes
from jaxdq.calibration import Sensitivity, correct_trajectory, measure_sensitivity


def names(recipe):
    return [one.name for one in recipe.calibrators]


def test_others_add_their_own_step_and_the_first_decides_the_rest():
    first = recipes.adpdm(4, 6, 4)
    made = recipes.chain(first, recipes.ptqd(8, 8), recipes.tac())
    assert names(made) == [*names(first), "correct_noise", "correct_trajectory"]
    assert (made.name, made.rules, made.num_groups) == ("adpdm+ptqd+tac", first.rules, 4)


def test_what_a_step_needs_is_measured_before_it_once():
    plain = recipes.uniform_groups(4, 8)
    assert not any(Sensitivity in one.gives for one in plain.calibrators)
    made = recipes.chain(plain, recipes.weights("gptq"))
    assert names(made)[-2:] == ["measure_sensitivity", "compensate_rounding"]
    assert names(made).count("measure_sensitivity") == 1
    again = recipes.chain(recipes.chain(plain, measure_sensitivity()), recipes.weights("gptq"))
    assert names(again) == names(made)


def test_chains_can_be_chained():
    corrections = recipes.chain(recipes.ptqd(), recipes.tac())
    made = recipes.chain(recipes.minmax(), corrections)
    assert names(made)[-2:] == ["correct_noise", "correct_trajectory"]
    # Another name, where a folder of states takes each name once.
    twice = recipes.chain(corrections, correct_trajectory()._replace(name="again"))
    assert names(twice)[-2:] == ["correct_trajectory", "again"]


@pytest.mark.parametrize("method", ["nearest", "gptq", "obq", "adaround"])
def test_weights_are_the_words_of_recipes(method):
    given = [one.name for one in recipes.weights(method)]
    own = names(recipes.uniform_groups(4, 8, weights=method))
    assert own[len(own) - len(given) :] == given
    assert recipes.chain(recipes.minmax(), recipes.weights(method)).calibrators


@pytest.mark.parametrize("name", ["obc", "qdiffusion", "ptqd", "tac"])
def test_methods_beside_ranges_can_follow_any_recipe(name):
    made = recipes.chain(recipes.minmax(4, 8), getattr(recipes, name)(4, 8))
    assert names(made)[-1] == getattr(recipes, name)(4, 8).adds[-1].name


def test_what_adds_nothing_or_is_no_recipe_is_refused():
    with pytest.raises(InputError, match="recipe 'minmax' adds nothing to 'adpdm' but ranges; put it first"):
        recipes.chain(recipes.adpdm(), recipes.minmax())
    for other in ("tac", recipes.tac, 3, [3], None):
        with pytest.raises(InputError, match="give recipes or calibrators"):
            recipes.chain(recipes.adpdm(), other)
    with pytest.raises(InputError, match="chain starts with 'adpdm'; give a recipe"):
        recipes.chain("adpdm", recipes.tac())
    with pytest.raises(InputError, match="weights is 'best'"):
        recipes.weights("best")
