import pytest

from jaxdq import InputError, recipes


@pytest.mark.parametrize(("make", "step"), [(recipes.ptqd, "correct_noise"), (recipes.tac, "correct_trajectory")])
def test_corrections_come_last_and_take_their_settings(make, step):
    recipe = make(4, 8, 2, estimator="paper")
    assert [one.name for one in recipe.calibrators][-2:] == ["compensate_rounding", step]
    assert recipe.calibrators[-1].settings["estimator"] == "paper" and recipe.num_groups == 2
    assert [one.name for one in recipe.adds] == [step]
    assert "compensate_rounding" not in [one.name for one in make(8, 8).calibrators]
    learned = make(4, 8, ranges="learned", weights="nearest")
    assert [one.name for one in learned.calibrators][-2:] == ["learn_ranges", step]


def test_budgets_are_spent_before_corrections_are_made():
    within = recipes.within_budget(recipes.chain(recipes.minmax(4, 8), recipes.tac()), 0.12)
    assert [one.name for one in within.calibrators][-2:] == ["spend_budget", "correct_trajectory"]


@pytest.mark.parametrize("make", [recipes.ptqd, recipes.tac])
def test_refuses_what_every_recipe_refuses(make):
    with pytest.raises(InputError, match="bits"):
        make(9, 8)
    with pytest.raises(InputError, match="estimator is 'open'"):
        make(4, 8, estimator="open")
    with pytest.raises(InputError, match="ranges is 'best'"):
        make(4, 8, ranges="best")
    with pytest.raises(InputError, match="weights is 'best'"):
        make(4, 8, weights="best")
    with pytest.raises(InputError, match="split is 'no'"):
        make(4, 8, split="no")
