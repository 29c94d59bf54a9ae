import pytest

from jaxdq import InputError, recipes
from jaxdq.recipes import within_budget


def names(recipe):
    return [one.name for one in recipe.calibrators]


@pytest.mark.parametrize(
    ("recipe", "follows"),
    [
        (recipes.minmax(4, 8), []),
        (recipes.uniform_groups(4, 8, ranges="learned"), ["learn_ranges"]),
        (recipes.uniform_groups(4, 8, weights="adaround"), ["reconstruct"]),
        (recipes.adpdm(4, 8), ["compensate_rounding", "learn_ranges"]),
        (recipes.qdiffusion(4, 8), ["reconstruct"]),
    ],
)
def test_bits_are_chosen_before_weights_are_rounded_and_after_what_they_need(recipe, follows):
    found = within_budget(recipe, 0.12)
    place = names(found).index("spend_budget")
    assert names(found)[place + 1 :] == follows and names(found).count("measure_sensitivity") == 1
    assert "measure_sensitivity" in names(found)[:place] and "fit_weights" in names(found)[:place]
    assert found.calibrators[place].settings["budget"] == 0.12 and found.name == recipe.name


def test_one_budget_is_enough():
    with pytest.raises(InputError, match="recipe 'minmax' has a budget already"):
        within_budget(within_budget(recipes.minmax(), 0.5), 0.4)
