import pytest

from jaxdq import InputError, recipes


def names(recipe):
    return [one.name for one in recipe.calibrators]


MAKE = {name: getattr(recipes, name) for name in ("minmax", "uniform_groups", "adpdm")}
every_recipe = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@every_recipe
@pytest.mark.parametrize("rounding", ["gptq", "obq"])
def test_codes_are_decided_on_fitted_grids_and_ranges_learned_around_them(make, rounding):
    found = names(make(4, 8, ranges="learned", weights=rounding))
    assert found.index("compensate_rounding") == found.index("learn_ranges") - 1
    one = next(one for one in make(4, 8, weights=rounding).calibrators if one.name == "compensate_rounding")
    assert one.settings["method"] == rounding


@every_recipe
def test_adaround_learns_rounding_alone_before_ranges(make):
    found = names(make(4, 8, ranges="learned", weights="adaround"))
    assert found.index("reconstruct") == found.index("learn_ranges") - 1 and "compensate_rounding" not in found
    one = next(one for one in make(4, 8, weights="adaround").calibrators if one.name == "reconstruct")
    assert one.settings["settings"]["acts"] is False


@every_recipe
def test_nearest_rounding_is_no_calibrator(make):
    assert "compensate_rounding" not in names(make(4, 8, weights="nearest"))


def test_adpdm_compensates_below_eight_bits():
    assert "compensate_rounding" in names(recipes.adpdm(4, 8)) and "compensate_rounding" in names(recipes.adpdm(6, 6))
    assert "compensate_rounding" not in names(recipes.adpdm(8, 4))


@every_recipe
@pytest.mark.parametrize("weights", ["adaquant", "", 4, True])
def test_refuses_unknown_rounding(make, weights):
    with pytest.raises(InputError, match=r"weights is .*; give one of 'nearest', 'gptq', 'obq', 'adaround'"):
        make(4, 8, weights=weights)
