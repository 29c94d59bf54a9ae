import pytest

from jaxdq import InputError, Rule, Scheme
from jaxdq.linen import Site, check_coverage, make_plan

W8, A8 = Scheme(8, channel_axis=-1), Scheme(8)
SITES = [
    Site("head", "dense", (4, 2), (1,), 1, 30),
    Site("body/0", "dense", (4, 2), (1,), 1, 40),
    Site("body/1", "dense", (4, 2), (1,), 1, 10, unsupported="inside nn.jit"),
    Site("(other contractions)", "product", (), (), 1, 20, "nobody knows them"),
]


def plan(*rules):
    return make_plan([*rules, Rule(".*", reason="by hand")], SITES)


@pytest.mark.parametrize("rules", [(), (Rule("body/1", W8, A8),)])
def test_nothing_quantized_is_refused_with_the_reasons(rules):
    with pytest.raises(
        InputError, match=r"nothing of 'toy' would be quantized: 70\.0% in 'head' and 1 more \(by hand\)"
    ):
        check_coverage(plan(*rules), "'toy'")


def test_less_than_half_is_said_largest_share_first():
    said = check_coverage(plan(Rule("body/0", W8, A8)), "'toy'")
    assert said == (
        "only 40.0% of the arithmetic of 'toy' runs on integers; in float: 30.0% in 'head' (by hand), 20.0% in "
        "(other contractions) (nobody knows them), 10.0% in 'body/1' (inside nn.jit)."
    )
    # Weights alone are something, and the arithmetic is float's.
    assert check_coverage(plan(Rule("head", W8)), "'toy'").startswith("only 0.0% of the arithmetic")


def test_half_and_more_is_enough():
    assert check_coverage(plan(Rule("head|body/0", W8, A8)), "'toy'") == ""
