import pytest

from jaxdq import InputError, recipes, run
from jaxdq.calibration import Recipe
from jaxdq.diffusion import DDIM, DDPM


def test_every_recipe_can_be_named_and_made():
    known = run.recipes_by_name()
    assert {"minmax", "uniform_groups"} <= set(known)
    assert "default_rules" not in known
    for name in known:
        recipe = run.make_recipe(run.Settings("digits", recipe=name, weight_bits=4))
        assert isinstance(recipe, Recipe) and recipe.name == name and "'bits': 4" in recipe.settings["rules"]


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


def test_the_default_recipe_exists():
    assert run.DEFAULT_RECIPE in run.recipes_by_name()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_refuses_seeds_that_jax_would_fold(seed):
    with pytest.raises(InputError, match=f"seed is {seed}"):
        run.Settings("digits", seed=seed)


def test_folder_of_a_model_by_its_path(tmp_path):
    settings = run.Settings(str(tmp_path / "deep" / "mine"), recipe="minmax")
    assert settings.default_folder.as_posix() == "out/mine-minmax-w8a8"


def test_the_dtype_is_checked_before_any_work_and_named_in_the_folder():
    with pytest.raises(InputError, match="dtype is 'int8'; give bfloat16, float16, float32"):
        run.Settings("digits", dtype="int8")
    assert run.Settings("digits", dtype="bfloat16").default_folder.name == "digits-adpdm-w8a8-bfloat16"
