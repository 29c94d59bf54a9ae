import numpy as np

from jaxdq.grid import Scheme
from jaxdq.linen import Site
from jaxdq.recipes import minmax

SITES = [Site(name, "dense", (4, 4), (1,), 9, 144) for name in ("a", "b", "c")]


def test_settings_name_the_figures_of_the_report():
    assert minmax(4, 6).settings == {"weight_bits": 4, "act_bits": 6, "groups": 1}
    assert minmax().settings == {"weight_bits": 8, "act_bits": 8, "groups": 1}
    assert minmax().name == "minmax"


def test_golden_weight_grid_spans_the_largest_weight_of_each_channel():
    kernel = np.array([[7.0, 0.5], [-14.0, 0.25]], np.float32)
    qparams = minmax(4).weight_range(kernel, Scheme(4, channel_axis=-1))
    np.testing.assert_array_equal(qparams.scale, np.float32([[14.0, 0.5]]) / np.float32(7))


def test_bits_reach_the_rules():
    rule = minmax(4, 6).rules(SITES)[-1]
    assert (rule.weight.bits, rule.act.bits) == (4, 6)


def test_one_pass_and_one_sharing():
    assert len(minmax().calibrators) == 2
