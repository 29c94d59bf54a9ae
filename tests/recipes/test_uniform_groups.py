import pytest

from jaxdq.linen import Site
from jaxdq.recipes import uniform_groups

SITES = [Site(name, "dense", (4, 4), (1,), 9, 144) for name in ("a", "b", "c")]


@pytest.mark.parametrize("num_groups", [1, 4])
def test_settings_name_the_figures_of_the_report(num_groups):
    recipe = uniform_groups(4, 6, num_groups)
    assert recipe.num_groups == num_groups == recipe.settings["calibrators"][-1]["num_groups"]
    assert recipe.name == "uniform_groups"


def test_bits_reach_the_rules():
    rule = uniform_groups(4, 6).rules(SITES)[-1]
    assert (rule.weight.bits, rule.act.bits) == (4, 6)
