import dataclasses
import inspect

import pytest

from jaxdq import InputError, recipes
from jaxdq.app import run
from jaxdq.calibration import RangeSettings, Recipe, SearchSettings
from jaxdq.diffusion import DDIM, DDPM, SAMPLERS


def test_every_recipe_can_be_named_and_made():
    known = run.recipes_by_name()
    assert {"minmax", "uniform_groups"} <= set(known)
    assert all("ranges" in inspect.signature(make).parameters for make in known.values())
    assert "default_rules" not in known
    for name in known:
        recipe = run.make_recipe(run.Settings("digits", recipe=name, weight_bits=4))
        assert isinstance(recipe, Recipe) and recipe.name == name and "'bits': 4" in recipe.settings["rules"]


def test_recipes_can_be_joined():
    settings = run.Settings(
        "digits", recipe="uniform_groups+obc+tac", weight_bits=4, groups=3, arguments={"split": False}
    )
    made = run.make_recipe(settings)
    first = recipes.uniform_groups(4, 8, 3, split=False)
    assert made.settings == recipes.chain(first, recipes.obc(4, 8), recipes.tac(4, 8)).settings
    assert (made.name, made.num_groups) == ("uniform_groups+obc+tac", 3)
    assert str(settings.default_folder) == "out/digits-uniform_groups+obc+tac-w4a8-g3-split=False"
    for name, said in (
        ("adpdm+best", "no recipe 'best'"),
        ("+tac", "no recipe ''"),
        ("tac+minmax", "'minmax' adds nothing"),
    ):
        with pytest.raises(InputError, match=said):
            run.make_recipe(run.Settings("digits", recipe=name))


def test_groups_reach_the_recipe_that_takes_them():
    settings = run.Settings("digits", recipe="uniform_groups", groups=3)
    assert run.make_recipe(settings).num_groups == 3


def test_without_groups_the_recipe_decides():
    made = run.make_recipe(run.Settings("digits", recipe="uniform_groups"))
    assert made.settings == recipes.uniform_groups().settings


def test_one_group_is_what_minmax_has():
    assert run.make_recipe(run.Settings("digits", recipe="minmax", groups=1)).name == "minmax"


def test_samplers_by_name():
    assert run.make_sampler("ddim", 4, 0.5) == DDIM(4, 0.5)
    assert run.make_sampler("ddpm", 4) == DDPM(4)
    for name, make in SAMPLERS.items():
        assert run.make_sampler(name, 4) == make(4)


def test_the_default_recipe_exists():
    assert run.DEFAULT_RECIPE in run.recipes_by_name()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_refuses_seeds_that_jax_would_fold(seed):
    with pytest.raises(InputError, match=f"seed is {seed}"):
        run.Settings("digits", seed=seed)


def test_folder_of_a_model_by_its_path(tmp_path):
    settings = run.Settings(str(tmp_path / "deep" / "mine"), recipe="minmax")
    assert settings.default_folder.as_posix() == "out/mine-minmax-w8a8"
    drawn = dataclasses.replace(settings, sampler="dpm_solver")
    assert drawn.default_folder.as_posix() == "out/mine-minmax-w8a8-dpm_solver"


def test_the_dtype_is_checked_before_any_work_and_named_in_the_folder():
    with pytest.raises(InputError, match="dtype is 'int8'; give bfloat16, float16, float32"):
        run.Settings("digits", dtype="int8")
    assert run.Settings("digits", dtype="bfloat16").default_folder.name == "digits-adpdm-w8a8-bfloat16"


SET = {
    "budget": ({"budget": "64"}, {"budget": 64}),
    "a value": ({"budget": 64}, {"budget": 64}),
    "none": ({"budget": "none"}, {"budget": None}),
    "a field": ({"search.num_updates": "30"}, {"search.num_updates": 30}),
    "a real number": (
        {"search.learning_rate": "1e-3", "search.entropy": "1"},
        {"search.learning_rate": 1e-3, "search.entropy": 1.0},
    ),
    "yes or no": ({"learning.weights": "false"}, {"learning.weights": False}),
}


@pytest.mark.parametrize("name", SET)
def test_arguments_of_the_recipe_take_their_types(name):
    given, typed = SET[name]
    settings = run.Settings("digits", arguments=given)
    assert settings.arguments == typed
    assert [type(value) for value in settings.arguments.values()] == [type(value) for value in typed.values()]


def test_arguments_reach_the_recipe():
    given = {"budget": 64, "search.num_updates": 30, "search.moves": 5, "learning.weights": "false"}
    made = run.make_recipe(run.Settings("digits", weight_bits=4, arguments=given))
    learning = RangeSettings(weights=False)  # at 4 bits, the settings' own defaults
    search = SearchSettings(num_updates=30, moves=5)
    assert made.settings == recipes.adpdm(4, budget=64, search=search, learning=learning).settings


def test_a_field_leaves_the_others_as_the_recipe_has_them():
    """At 8 bits `adpdm` has other settings than the classes' own."""
    plain, changed = (
        {one.name: one.settings.get("settings") for one in run.make_recipe(settings).calibrators}
        for settings in (run.Settings("digits"), run.Settings("digits", arguments={"search.entropy": 1.5}))
    )
    assert plain["search_groups"]["moves"] != SearchSettings().moves, "or this test says nothing"
    assert changed == {**plain, "search_groups": {**plain["search_groups"], "entropy": 1.5}}


def test_arguments_that_have_a_setting_of_their_own_become_it():
    given = {"weight_bits": "4", "act_bits": 6, "num_groups": "3", "ranges": "mse"}
    settings = run.Settings("digits", arguments=given)
    assert settings == run.Settings("digits", weight_bits=4, act_bits=6, groups=3, ranges="mse")
    with pytest.raises(InputError, match="groups is 8 and num_groups was set to 3; give one of them"):
        run.Settings("digits", groups=8, arguments=given)


@pytest.mark.parametrize("recipe", run.recipes_by_name())
@pytest.mark.parametrize("ranges", ["minmax", "mse", "percentile", "learned"])
def test_ranges_reach_every_recipe(recipe, ranges):
    made = run.make_recipe(run.Settings("digits", recipe=recipe, ranges=ranges))
    assert made.settings == run.recipes_by_name()[recipe](ranges=ranges).settings


def test_runs_with_other_ranges_and_arguments_go_to_other_folders():
    settings = run.Settings("digits", ranges="mse", arguments={"budget": 64})
    assert settings.default_folder.name == "digits-adpdm-w8a8-mse-budget=64"


REFUSED = {
    "unknown": ({"bugdet": 64}, "recipe 'adpdm' has no argument 'bugdet'; it has weight_bits, act_bits, .*budget"),
    "unknown field": ({"search.updates": 3}, "has no argument 'search.updates'; it has .*search.num_updates"),
    "all of them": ({"search": "fast"}, "has no argument 'search'; it has .*search.num_updates"),
    "no whole number": ({"search.num_updates": "3.5"}, "search.num_updates is '3.5'; give a whole number"),
    "a word": ({"budget": "many"}, "budget is 'many'; give a whole number or none"),
    "yes as a number": ({"budget": True}, "budget is 'True'; give a whole number or none"),
    "not finite": ({"search.entropy": "nan"}, "search.entropy is 'nan'; give a finite number"),
    "neither yes nor no": ({"learning.weights": "maybe"}, "learning.weights is 'maybe'; give true or false"),
    "ranges": ({"ranges": "mean"}, "ranges is 'mean'; give one of minmax, mse, percentile, learned"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_arguments(name):
    given, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        run.Settings("digits", arguments=given)


def test_refuses_numbers_that_the_settings_refuse():
    settings = run.Settings("digits", arguments={"search.num_updates": 0})
    with pytest.raises(InputError, match="num_updates is 0; give a whole number of at least 1"):
        run.make_recipe(settings)
