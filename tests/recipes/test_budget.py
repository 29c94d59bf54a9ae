"""What recipes spend on learning where they are given no settings."""

import pytest

from jaxdq import recipes
from jaxdq.calibration import RangeSettings, SearchSettings


def settings_of(recipe, name):
    return next(dict(one.settings)["settings"] for one in recipe.calibrators if one.name == name)


LEARNING = {
    "minmax": lambda *bits, **settings: recipes.minmax(*bits, ranges="learned", **settings),
    "uniform_groups": lambda *bits, **settings: recipes.uniform_groups(*bits, ranges="learned", **settings),
    "adpdm": recipes.adpdm,
}


@pytest.mark.parametrize("make", LEARNING.values(), ids=LEARNING)
def test_eight_bits_learn_in_fewer_updates(make):
    fine, *coarse = (settings_of(make(*bits), "learn_ranges") for bits in ((8, 8), (4, 8), (8, 4), (6, 6)))
    assert fine["num_updates"] < RangeSettings().num_updates
    assert all(one["num_updates"] == RangeSettings().num_updates for one in coarse)


@pytest.mark.parametrize("make", LEARNING.values(), ids=LEARNING)
def test_settings_that_are_given_stand(make):
    given = settings_of(make(8, 8, learning=RangeSettings(num_updates=77)), "learn_ranges")
    assert given["num_updates"] == 77


def test_no_boundary_is_moved_at_eight_bits_unless_asked_for():
    def moves(*bits, **settings):
        return settings_of(recipes.adpdm(*bits, **settings), "search_groups")["moves"]

    assert moves(8, 8) == 0
    assert moves(8, 4) == moves(4, 8) == SearchSettings().moves
    assert moves(8, 8, search=SearchSettings(moves=3)) == 3
