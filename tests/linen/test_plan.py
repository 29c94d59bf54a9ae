import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from toys import SHAPE, ToyUNet, toy_params, toy_plan

from jaxdq import InputError
from jaxdq.grid import Scheme
from jaxdq.linen import Rule, Site, find_sites, make_plan

W8, A8 = Scheme(8, channel_axis=-1), Scheme(8, symmetric=False)
DENSE = Site("mid/dense", "dense", (4, 6), (1,), 3, 72)
CONV = Site("conv_in", "conv", (3, 3, 4, 6), (3,), 9, 1944)
PRODUCT = Site("mid/scores", "product", (1, 16, 8), (), 16, 2048)
SITES = (CONV, DENSE, PRODUCT)
REST = Rule(".*", W8, A8)


def test_the_first_rule_that_matches_decides():
    plan = make_plan([Rule("mid/.*", Scheme(4, channel_axis=-1), A8), REST], SITES)
    assert {site.path: site.weight and site.weight.bits for site in plan.sites} == {
        "conv_in": 8,
        "mid/dense": 4,
        "mid/scores": None,
    }


def test_the_whole_path_must_match():
    with pytest.raises(InputError, match=r"'mid' match none of the 3 sites.*'conv_in'"):
        make_plan([Rule("mid"), REST], SITES)


def test_a_site_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(InputError, match="no rule matches 'mid/dense', 'mid/scores'"):
        make_plan([Rule("conv_.*", W8, A8)], SITES)


def test_many_names_are_counted_and_not_listed():
    sites = [Site(f"dense_{index}", "dense", (4, 6), (1,), 3, 72) for index in range(20)]
    with pytest.raises(InputError, match="'dense_7' and 12 more"):
        make_plan([], sites)


def test_a_rule_of_another_kind_matches_nothing():
    with pytest.raises(InputError, match="the rules 'mid/dense' match none"):
        make_plan([Rule("mid/dense", W8, A8, kind="conv"), REST], SITES)


def test_a_rule_whose_sites_were_taken_is_no_slip():
    assert make_plan([REST, Rule("conv_in", reason="too late")], SITES).by_path["conv_in"].is_integer


def test_integer_inputs_of_a_float_kernel_are_refused():
    with pytest.raises(InputError, match="'mid/dense' 8-bit activations and a float kernel"):
        make_plan([Rule(".*", act=A8)], [DENSE])


@pytest.mark.parametrize("axis", [0, -2, (0, 1), 2, (-1, -2)])
def test_weight_scales_along_the_contraction_are_refused(axis):
    with pytest.raises(InputError, match=r"axis .* of \(3, 3, 4, 6\) at 'conv_in'.*channel_axis=-1"):
        make_plan([Rule(".*", Scheme(8, channel_axis=axis), A8)], [CONV])


def test_activation_scales_along_the_contraction_are_refused():
    with pytest.raises(InputError, match="activation scales along axis -1 at 'conv_in'"):
        make_plan([Rule(".*", W8, Scheme(8, channel_axis=-1))], [CONV])


def test_output_channels_of_a_kernel_are_all_its_feature_axes():
    site = Site("query", "dense", (8, 2, 4), (1, 2), 5, 320)
    (planned,) = make_plan([Rule(".*", W8, A8)], [site]).sites
    assert planned.weight == Scheme(8, channel_axis=(1, 2))
    (planned,) = make_plan([Rule(".*", Scheme(8), A8)], [site]).sites
    assert planned.weight == Scheme(8)


def test_what_stays_in_float_says_why():
    masked = Site("masked", "conv", (3, 3, 4, 6), (3,), 9, 1944, "a masked convolution")
    rules = [Rule("conv_in"), Rule("mid/dense", W8, reason="small"), Rule(".*", W8, kind="conv"), Rule(".*", W8)]
    plan = make_plan(rules, [*SITES, masked])
    assert [(site.path, site.is_integer, site.reason) for site in plan.sites] == [
        ("conv_in", False, "left in float by rule"),
        ("mid/dense", False, "small"),
        ("mid/scores", False, "products of activations are left in float"),
        ("masked", False, "a masked convolution"),
    ]
    # An unsupported site keeps its float kernel too, whatever the rule wanted.
    assert plan.by_path["masked"].weight is None
    assert plan.columns == () and plan.integer_mac_fraction == 0


def test_a_product_has_a_column_for_each_side():
    plan = make_plan([Rule(".*", W8, A8)], SITES)
    names = ("conv_in", "mid/dense", "mid/scores:lhs", "mid/scores:rhs")
    assert plan.activations == {name: (index, A8) for index, name in enumerate(names)}
    assert plan.columns == tuple((name, A8) for name in names)
    assert plan.by_path["mid/scores"].weight is None
    assert plan.integer_mac_fraction == 1


def test_golden_integer_mac_fraction():
    plan = make_plan([Rule("conv_in"), REST], [CONV, DENSE])
    assert plan.integer_mac_fraction == 72 / (72 + 1944)


def test_golden_table():
    params = {"pos": np.zeros((5, 4)), "mid": {"dense": {"kernel": np.zeros((4, 6)), "bias": np.zeros(6)}}}
    plan = make_plan([Rule("conv_in", reason="reads the image"), REST], [CONV, DENSE], params)
    assert str(plan).splitlines() == [
        "site       kind   shape    weight  act    runs as",
        "conv_in    conv   3x3x4x6  float   float  float: reads the image",
        "mid/dense  dense  4x6      8       8a     integer",
        "pos        param  5x4      float   -      float: not the kernel of a Dense, DenseGeneral or Conv that is "
        "called",
    ]


def test_parameters_that_no_site_owns_are_named():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            h = nn.ConvTranspose(4, (3, 3), name="transpose")(x)
            h = h + nn.Embed(20, 4, name="embed")(t) + self.param("table", nn.initializers.ones, (1, 4))
            return nn.Dense(2, name="dense")(nn.LayerNorm(name="norm")(h))

    x, t = np.zeros((2, 4, 4, 2), np.float32), np.int32(0)
    plan = toy_plan(Odd(), toy_params(Odd(), x, t), [REST], x, t)
    assert [(path, shape) for path, shape, _ in plan.unplanned] == [
        ("embed/embedding", (20, 4)),
        ("table", (1, 4)),
        ("transpose/kernel", (3, 3, 2, 4)),
    ]
    # The transposed convolution is no site; what it computes is named all the same.
    assert [site.path for site in plan.sites] == ["dense", "(other contractions)"]


def test_equal_plans_are_equal_keys():
    x, t = np.zeros((1, *SHAPE), np.float32), np.int32(0)
    params = toy_params(ToyUNet(), x, t)
    one, two = (make_plan([REST], find_sites(ToyUNet(), params, x, t), params) for _ in range(2))
    assert one is not two and one == two and hash(one) == hash(two)
    other = make_plan([Rule("down", Scheme(4, channel_axis=-1), A8), REST], find_sites(ToyUNet(), params, x, t), params)
    assert other != one
    traces = []
    run = jax.jit(lambda x, plan: traces.append(plan) or x, static_argnums=1)
    for plan in (one, two, other):
        run(1.0, plan)
    assert len(traces) == 2


QUERY, KEY, VALUE = (
    dataclasses.replace(DENSE, path=path, reads=reads) for path, reads in (("q", ""), ("k", "q"), ("v", "q"))
)


def test_sites_that_are_called_with_one_array_share_a_column():
    plan = make_plan([REST], [CONV, QUERY, KEY, VALUE])
    assert plan.columns == (("conv_in", A8), ("q", A8))
    assert {name: column for name, (column, _) in plan.activations.items()} == {"conv_in": 0, "q": 1, "k": 1, "v": 1}
    assert [plan.has_codes_of_another(path) for path in ("conv_in", "q", "k", "v", "elsewhere")] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_only_sites_of_one_scheme_share_a_column():
    other = Scheme(6, symmetric=False)
    plan = make_plan([Rule("q"), Rule("v", W8, other), REST], [QUERY, KEY, VALUE])
    assert plan.columns == (("q", A8), ("q", other)), "columns go by the array, also where its first reader is float"
    plan = make_plan([Rule("k", W8, other), REST], [QUERY, KEY, VALUE])
    assert plan.columns == (("q", A8), ("q", other)) and plan.activations["v"] == (0, A8)
