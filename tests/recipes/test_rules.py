import numpy as np
import pytest
from toys import SHAPE, ToyUNet, toy_params

from jaxdq.linen import Site, find_sites, make_plan
from jaxdq.recipes import default_rules

X, T0 = np.zeros((1, *SHAPE), np.float32), np.int32(0)
PARAMS = toy_params(ToyUNet(), X, T0)
SITES = find_sites(ToyUNet(), PARAMS, X, T0)


def plan(weight_bits=8, act_bits=8, sites=SITES):
    return make_plan(default_rules(weight_bits, act_bits)(sites), sites)


def test_golden_table_of_the_toy():
    assert [(row[0], *row[3:]) for row in plan(4, 6).rows()] == [
        ("time", "8", "float", "float: one row per image: weights only"),
        ("shift", "8", "float", "float: one row per image: weights only"),
        ("conv_in", "float", "float", "float: reads or writes the image"),
        ("down", "4", "6a", "integer"),
        ("query", "4", "6a", "integer"),
        ("key", "4", "6a", "integer"),
        ("value", "4", "6a", "integer"),
        ("scores", "-", "float", "float: attention stays in float"),
        ("mix", "-", "float", "float: attention stays in float"),
        ("out", "4", "6a", "integer"),
        ("up", "4", "6a", "integer"),
        ("conv_out", "float", "float", "float: reads or writes the image"),
    ]


def test_most_of_the_work_runs_on_integers():
    # By hand: all but the ends (64 * 144 * 2), the time path (192) and attention (2 * 4096), of the toy's macs.
    integer = 16 * 72 * 16 + 4 * 16 * 256 + 64 * 216 * 8
    assert plan().integer_mac_fraction == integer / (integer + 64 * 144 * 2 + 192 + 2 * 4096)
    assert plan().integer_mac_fraction > 0.8


def dense(path, rows):
    return Site(path, "dense", (4, 4), (1,), rows, 16 * rows)


@pytest.mark.parametrize(
    ("sites", "integer"),
    [
        ([dense("a", 9)], ["a"]),  # both ends would be all there is
        ([dense("a", 9), dense("b", 9)], ["a", "b"]),
        ([dense("a", 9), dense("b", 9), dense("c", 9)], ["b"]),
        ([dense("time", 1), dense("a", 9), dense("b", 9), dense("c", 9), dense("class", 1)], ["b"]),
        ([dense("a", 1), dense("b", 1)], ["a", "b"]),  # no image has positions here: nothing is the time path
        ([dense("a+b", 9), dense("a(b", 9), dense("a.b", 9)], ["a(b"]),  # paths are no patterns
    ],
)
def test_rules_fit_whatever_the_network_is_made_of(sites, integer):
    assert [site.path for site in plan(sites=sites).sites if site.is_integer] == integer


def test_products_alone_stay_in_float():
    product = Site("scores", "product", (1, 4, 4), (), 4, 64)
    assert not plan(sites=[product]).by_path["scores"].is_integer
    assert [site.path for site in plan(sites=[product, dense("a", 9)]).sites if site.is_integer] == ["a"]


def test_weights_have_a_scale_per_output_channel_and_activations_one():
    planned = plan(3, 5).by_path["down"]
    assert (planned.weight.bits, planned.weight.symmetric, planned.weight.channel_axis) == (3, True, (3,))
    assert (planned.act.bits, planned.act.symmetric, planned.act.channel_axis) == (5, False, None)
