import pytest

from jaxdq import InputError, recipes
from jaxdq.calibration import RangeSettings, ReconstructionSettings


def names(recipe):
    return [one.name for one in recipe.calibrators]


def test_rounding_and_step_sizes_are_learned_once_all_grids_are_fitted():
    recipe = recipes.qdiffusion(4, 8, 2)
    assert names(recipe)[-2:] == ["share_uniformly", "reconstruct"] and recipe.num_groups == 2
    assert recipe.calibrators[-1].settings["settings"]["acts"] is True
    assert recipes.qdiffusion().num_groups == 1


def test_ranges_are_learned_together_afterwards_where_asked():
    assert names(recipes.qdiffusion(4, 8, ranges="learned"))[-2:] == ["reconstruct", "learn_ranges"]


def test_takes_settings():
    recipe = recipes.qdiffusion(4, 8, reconstruction=ReconstructionSettings(by="layer", num_updates=7))
    settings = recipe.calibrators[-1].settings["settings"]
    assert (settings["by"], settings["num_updates"]) == ("layer", 7)


def test_refuses_what_every_recipe_refuses():
    with pytest.raises(InputError, match="bits"):
        recipes.qdiffusion(9, 8)
    with pytest.raises(InputError, match="bits is '8'"):
        recipes.qdiffusion("8", 8)
    with pytest.raises(InputError, match="reconstruction is 'fast'; give a"):
        recipes.qdiffusion(4, 8, reconstruction="fast")
    with pytest.raises(InputError, match="split is 'yes'; give True or False"):
        recipes.qdiffusion(4, 8, split="yes")
    with pytest.raises(InputError, match="ranges is 'best'"):
        recipes.qdiffusion(4, 8, ranges="best")
    with pytest.raises(InputError, match="settings of the learning were given"):
        recipes.qdiffusion(4, 8, learning=RangeSettings())
