from jaxdq.linen import Site
from jaxdq.recipes import minmax

SITES = [Site(name, "dense", (4, 4), (1,), 9, 144) for name in ("a", "b", "c")]


def test_settings_name_the_figures_of_the_report():
    assert minmax().num_groups == 1 and minmax().name == "minmax"
    assert minmax(4, 6).settings["calibrators"] == [
        {"name": "fit_weights", "weight_range": "minmax_weights()"},
        {"name": "observe", "observer": "minmax()"},
        {"name": "share_uniformly", "num_groups": 1},
    ]
    assert minmax(4, 6).settings["rules"] != minmax(4, 8).settings["rules"] != minmax(8, 8).settings["rules"]


def test_bits_reach_the_rules():
    rule = minmax(4, 6).rules(SITES)[-1]
    assert (rule.weight.bits, rule.act.bits) == (4, 6)
