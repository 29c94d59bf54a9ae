import pytest

from jaxdq import InputError, recipes


def names(recipe):
    return [one.name for one in recipe.calibrators]


def test_compensates_on_ranges_of_equal_spans():
    recipe = recipes.obc(4, 8, 2)
    assert names(recipe)[-1] == "compensate_rounding" and recipe.num_groups == 2
    assert recipe.calibrators[-1].settings["method"] == "gptq"


def test_the_method_and_the_sparsity_reach_the_calibrator():
    settings = recipes.obc(4, 8, method="obq", sparsity="2:4").calibrators[-1].settings
    assert (settings["method"], settings["sparsity"]) == ("obq", "2:4")
    assert names(recipes.obc(4, 8, ranges="learned"))[-2:] == ["compensate_rounding", "learn_ranges"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_bits": 9}, "9"),
        ({"method": "adaround"}, "method is 'adaround'; give one of 'gptq', 'obq'"),
        ({"sparsity": "4:2"}, "sparsity is '4:2'"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"ranges": "best"}, "ranges is 'best'"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        recipes.obc(**arguments)
