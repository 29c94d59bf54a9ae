import collections
import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from toys import KNOWN_PARAMS, KNOWN_X, KNOWN_Y, SHAPE, Known, Told, ToyUNet, toy_calibration, toy_params, toy_plan

from jaxdq import InputError
from jaxdq.grid import Grid, QParams, Scheme, fake_quantize
from jaxdq.linen import (
    Calibration,
    Einsum,
    Rule,
    apply,
    apply_visited,
    dequantize_params,
    find_sites,
    make_plan,
    quantize,
    time_argument,
    unfitted_acts,
)
from jaxdq.metrics import sqnr_db

W8, S8, A8 = Scheme(8, channel_axis=-1), Scheme(8), Scheme(8, symmetric=False)
GROUP_OF_T = [0, 0, 1, 1, 2, 2]


class Small(nn.Module):
    """Two dense layers and a product, quick to compile."""

    dtype: type | None = None

    @nn.compact
    def __call__(self, x, t, shift=0.0):
        h = jnp.tanh(nn.Dense(6, name="first", dtype=self.dtype)(x))
        h = Einsum("bij,bj->bi", name="product")(h[:, :, None] * h[:, None, :], h)
        return nn.Dense(4, name="last", dtype=self.dtype)(h) + shift


X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
PARAMS = toy_params(Small(), X, np.int32(0))
RULES = [Rule("first", W8, A8), Rule("product", act=S8), Rule("last", Scheme(4, channel_axis=-1), S8)]
# The network under test, compiled once for each kind of t.
run = jax.jit(lambda qparams, x, t: apply(Small(), qparams, x, t))


@pytest.fixture(scope="module")
def qparams():
    plan = toy_plan(Small(), PARAMS, RULES, X, np.int32(0))
    calib = toy_calibration(Small(), PARAMS, plan, GROUP_OF_T, X, np.int32(0), num_groups=3)
    return jax.jit(quantize)(PARAMS, calib)


def equations(jaxpr):
    """Every equation of a jaxpr, those of its inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


CONTRACTIONS = ("dot_general", "conv_general_dilated")


def contractions(jaxpr):
    """(primitive, operand dtypes, result dtype) -> how often."""
    return collections.Counter(
        (eqn.primitive.name, *(str(var.aval.dtype) for var in (*eqn.invars[:2], eqn.outvars[0])))
        for eqn in equations(jaxpr)
        if eqn.primitive.name in CONTRACTIONS
    )


# --- The numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [Scheme(8, channel_axis=-1), Scheme(8)], ids=["per channel", "per tensor"])
def test_known_answers_are_met_exactly(bits):
    plan = toy_plan(Known(), KNOWN_PARAMS, [Rule(".*", bits, S8)], KNOWN_X, np.int32(0))
    calib = toy_calibration(Known(), KNOWN_PARAMS, plan, [0], KNOWN_X, np.int32(0))
    out = apply(Known(), quantize(KNOWN_PARAMS, calib), KNOWN_X, 0)
    # Products of codes are integers and scales powers of two: nothing is rounded.
    np.testing.assert_array_equal(out, KNOWN_Y)


def test_oracle_integer_network_equals_its_float_twin():
    x = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32)
    t, params = jnp.int32(3), toy_params(ToyUNet(), x, np.int32(0))
    rules = [
        Rule("time", reason="float"),
        Rule("shift", W8),
        Rule("scores", act=A8),
        Rule("mix", act=S8),
        Rule("down", Scheme(4, channel_axis=-1), A8),
        Rule("query", Scheme(2, channel_axis=-1), S8),
        Rule("out", Scheme(8, symmetric=False, channel_axis=-1), A8),
        Rule(".*", W8, A8),
    ]
    plan = toy_plan(ToyUNet(), params, rules, x, t)
    calib = toy_calibration(ToyUNet(), params, plan, GROUP_OF_T, x, t, num_groups=3)
    qparams = jax.jit(quantize)(params, calib)

    @jax.jit
    def run(qparams, params, x, t):
        def visitor(name, x):
            if name not in plan.activations:
                return x
            column, scheme = plan.activations[name]
            zero_point = None if scheme.symmetric else qparams.acts.zero_point[1, column]
            return fake_quantize(x, QParams(qparams.acts.scale[1, column], zero_point), scheme)

        twin = apply_visited(ToyUNet(), dequantize_params(qparams), visitor, x, t)
        return apply(ToyUNet(), qparams, x, t), twin, apply(ToyUNet(), params, x, t)

    integer, twin, exact = run(qparams, params, x, t)
    # Where float sums of the two differ in the last bit, a code beside a tie may flip, and then an activation is off by
    # a whole step. A flipped share p adds noise of p s^2 to the s^2 / 12 that every activation has; ties within
    # 2**-20 of a step of 127 make p below 1e-3, so the two agree 10 log10(1 / 12e-3) = 19 dB better than with float.
    assert sqnr_db(twin, integer) > sqnr_db(exact, integer) + 19
    assert 10 < sqnr_db(exact, integer) < 50


def test_float_params_run_the_module_itself():
    np.testing.assert_array_equal(
        jax.jit(lambda: apply(Small(), PARAMS, X, 0))(), jax.jit(lambda: Small().apply({"params": PARAMS}, X, 0))()
    )


def test_weights_only_run_in_float_on_dequantized_kernels():
    plan = toy_plan(Small(), PARAMS, [Rule(".*", Scheme(4, channel_axis=-1))], X, np.int32(0))
    qparams = jax.jit(quantize)(PARAMS, toy_calibration(Small(), PARAMS, plan, [0], X, np.int32(0)))
    assert qparams.acts.scale.shape == (1, 0)
    out = run(qparams, X, 0)
    twin = jax.jit(lambda qparams: apply(Small(), dequantize_params(qparams), X, 0))(qparams)
    # The same float program, but for what XLA fuses: float32's last bits of sums of at most 36 numbers below 4.
    np.testing.assert_allclose(out, twin, rtol=0, atol=36 * 4 * 2**-23)
    assert not {name for name, *dtypes in contractions(jax.make_jaxpr(run)(qparams, X, 0).jaxpr) if "int8" in dtypes}


# --- Time ----------------------------------------------------------------------------------------------------------


def test_scalar_t_chooses_by_one_switch_that_holds_no_contraction(qparams):
    jaxpr = jax.make_jaxpr(run)(qparams, X, jnp.int32(0)).jaxpr
    switches = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "cond"]
    assert len(switches) == 1
    branches = switches[0].params["branches"]
    assert len(branches) == 3
    assert not {eqn.primitive.name for branch in branches for eqn in equations(branch.jaxpr)} & set(CONTRACTIONS)
    assert run.lower(qparams, X, jnp.int32(0)).as_text().count("stablehlo.case") == 1


def test_vector_t_needs_no_switch_and_equals_scalar_t(qparams):
    t = jnp.array([5, 0, 2, 3, 1, 4])
    rows = run(qparams, X, t)
    # The same integers either way, so only the rescale's last bits may differ, and codes beside a tie: none here.
    one_by_one = np.stack([np.asarray(run(qparams, X, t_of_row))[row] for row, t_of_row in enumerate(t)])
    np.testing.assert_allclose(rows, one_by_one, rtol=1e-5, atol=1e-5)
    jaxpr = jax.make_jaxpr(run)(qparams, X, t).jaxpr
    assert "cond" not in {eqn.primitive.name for eqn in equations(jaxpr)}
    # The groups differ by more than that.
    assert abs(run(qparams, X, jnp.int32(0)) - run(qparams, X, jnp.int32(5))).max() > 1e-3


def test_vmap_over_t_equals_vector_t(qparams):
    t = jnp.array([5, 0, 2, 3, 1, 4])
    mapped = jax.jit(jax.vmap(lambda x, t: apply(Small(), qparams, x[None], t)[0]))(X, t)
    np.testing.assert_allclose(mapped, run(qparams, X, t), rtol=1e-5, atol=1e-5)


def with_acts(qparams, **changes):
    return dataclasses.replace(qparams, acts=dataclasses.replace(qparams.acts, **changes))


def test_many_groups_are_gathered_and_give_the_same_numbers(qparams):
    """Above 16 rows a scalar t gathers too: the program of 1,000 rows is no larger than that of 17."""
    groups = np.asarray(GROUP_OF_T)
    rows = {name: np.asarray(getattr(qparams.acts, name))[groups] for name in ("scale", "zero_point")}

    def repeated(times):  # a row for every t, time and again
        tables = {name: jnp.asarray(np.tile(table, (times, 1))) for name, table in rows.items()}
        return with_acts(qparams, **tables, group_of_t=jnp.arange(6, dtype=jnp.int32))

    for t in range(6):
        np.testing.assert_array_equal(run(repeated(3), X, jnp.int32(t)), run(qparams, X, jnp.int32(t)))
    programs = [run.lower(repeated(times), X, jnp.int32(0)).as_text().count("\n") for times in (2, 3, 200)]
    assert programs[1] == programs[2] < programs[0]


def test_compiles_once_for_all_times_and_tables(qparams):
    traces = []

    @jax.jit
    def counted(qparams, x, t):
        traces.append(t)
        return apply(Small(), qparams, x, t)

    for t in range(6):
        counted(qparams, X, jnp.int32(t))
    counted(with_acts(qparams, scale=qparams.acts.scale * 2), X, jnp.int32(0))
    assert len(traces) == 1


@pytest.mark.parametrize("t", [0, 2, 5])
def test_invariant_a_group_reaches_only_its_own_times(qparams, t):
    group = GROUP_OF_T[t]
    outside = jnp.arange(3)[:, None] != group
    changed = with_acts(
        qparams,
        scale=jnp.where(outside, 7.0, qparams.acts.scale),
        zero_point=jnp.where(outside, 3, qparams.acts.zero_point),
    )
    np.testing.assert_array_equal(run(changed, X, jnp.int32(t)), run(qparams, X, jnp.int32(t)))
    gradient = grad_of_scales(qparams.acts.scale, qparams, jnp.int32(t))
    np.testing.assert_array_equal(np.asarray(gradient)[[g for g in range(3) if g != group]], 0.0)
    # Codes are whole numbers and pass no gradient on: what is left is the last layer's rescale.
    assert gradient[group, -1] != 0


@jax.jit
def grad_of_scales(scale, qparams, t):
    return jax.grad(lambda s: jnp.sum(apply(Small(), with_acts(qparams, scale=s), X, t) ** 2))(scale)


@pytest.mark.parametrize("t", [-1, 7, 6.01, -1e-3, np.inf, jnp.nan, np.array([0, 1, 2, 3, 4, 7])])
def test_concrete_t_outside_is_refused(qparams, t):
    with pytest.raises(InputError, match="times from 0 to 6"):
        apply(Small(), qparams, X, t)
    with pytest.raises(InputError, match="times from 0 to 6"):
        jax.jit(lambda x: apply(Small(), qparams, x, t))(X)  # a constant of the trace


def test_traced_t_outside_gives_nan_and_only_there(qparams):
    for t in (-1, 7, 10**6):
        assert np.isnan(run(qparams, X, jnp.int32(t))).all()
    rows = run(qparams, X, jnp.array([0, -1, 5, 7, 2, 3]))
    np.testing.assert_array_equal(np.isnan(rows).all(axis=1), [False, True, False, True, False, False])
    assert np.isfinite(np.asarray(rows)[[0, 2, 4, 5]]).all()


def test_t_missing_or_misshapen_is_refused(qparams):
    with pytest.raises(InputError, match=r"Small was called without its time argument 't' \(argument 2\)"):
        apply(Small(), qparams, X)
    with pytest.raises(InputError, match=r"t is of shape \(6, 1\)"):
        apply(Small(), qparams, X, jnp.zeros((6, 1), jnp.int32))
    for wrong in (True, "noon", None, 10**30, 1j, [[1]]):
        with pytest.raises(InputError, match="pass a number"):
            apply(Small(), qparams, X, wrong)
    with pytest.raises(InputError, match="t has 2 entries"):
        apply(Small(), qparams, X, jnp.zeros(2, jnp.int32))


def test_t_may_come_as_a_keyword(qparams):
    expected = np.asarray(run(qparams, X, jnp.int32(4)))
    by_name = jax.jit(lambda t: apply(Small(), qparams, X, t=t, shift=1.0))(jnp.int32(4))
    np.testing.assert_allclose(by_name, expected + 1.0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["t", "timestep", "timesteps", "time"])
def test_time_argument_is_found_by_name_wherever_it_stands(name):
    namespace = {}
    exec(f"def __call__(self, x, context, {name}, train=False): return x", namespace)
    module = type("Late", (nn.Module,), namespace)()
    assert time_argument(module, ("x", "context", 7), {}) == 7
    assert time_argument(module, ("x",), {"context": 1, name: 8}) == 8


def test_time_argument_is_else_the_second():
    class Sigma(nn.Module):
        def __call__(self, x, step_index):
            return x

    assert time_argument(Sigma(), ("x", 5), {}) == 5


# --- The program ---------------------------------------------------------------------------------------------------


@pytest.mark.optimized
def test_integer_sites_hold_integer_contractions_and_no_float_ones(qparams):
    lowered = run.lower(qparams, X, jnp.int32(0))
    assert contractions(jax.make_jaxpr(run)(qparams, X, jnp.int32(0)).jaxpr) == {
        ("dot_general", "int8", "int8", "int32"): 3
    }
    compiled = lowered.compile().as_text()
    dots = [line for line in compiled.splitlines() if " dot(" in line or " convolution(" in line]
    assert dots and not [line for line in dots if "= f32" in line.split(" dot(")[0]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, None])
def test_the_module_s_dtype_is_kept(dtype):
    module = Small(dtype)
    x = X if dtype is None else X.astype(dtype)
    plan = toy_plan(module, PARAMS, RULES, x, np.int32(0))
    calib = toy_calibration(module, PARAMS, plan, [0], x, np.int32(0))
    qparams = jax.jit(quantize)(PARAMS, calib)
    out = jax.jit(lambda qparams: apply(module, qparams, x, 0))(qparams)
    exact = jax.jit(lambda: apply(module, PARAMS, x, 0))()
    assert out.dtype == exact.dtype == (dtype or jnp.float32)
    # 4-bit weights in the last layer: errors uniform within 1/14 of the largest, 10 log10(7**2 * 3) = 22 dB below it at
    # best, and gaussian weights reach twice their deviation or more: 22 - 6 - 3.
    assert sqnr_db(exact, out) > 13


def test_visitor_sees_every_input_by_name_and_may_change_it():
    seen = {}

    def visitor(name, x):
        seen[name] = x.shape
        return x * 0

    out = apply_visited(Small(), PARAMS, visitor, X, 0)
    assert seen == {"first": (6, 4), "product:lhs": (6, 6, 6), "product:rhs": (6, 6), "last": (6, 6)}
    np.testing.assert_array_equal(out, np.tile(PARAMS["last"]["bias"], (6, 1)))


class SequenceFirst(nn.Module):
    """A layer whose leading axis is not the batch."""

    @nn.compact
    def __call__(self, x, t):
        return jnp.swapaxes(nn.Dense(4, name="dense")(jnp.swapaxes(x, 0, 1)), 0, 1)


def test_vector_t_is_refused_where_the_batch_does_not_lead():
    x = jnp.ones((4, 4, 3))  # as long as the batch: shapes alone would not tell
    params = SequenceFirst().init(jax.random.key(0), x, 0)["params"]
    sites = find_sites(SequenceFirst(), params, x[:1], 0)
    plan = make_plan([Rule(".*", Scheme(8, channel_axis=-1), Scheme(8))], sites)
    grid = Grid(QParams(jnp.full((1, 4), 0.01)), plan.sites[0].weight)
    calib = Calibration({"dense": grid}, unfitted_acts(plan.columns, 10, scale=0.1), plan)
    quantized = quantize(params, calib)
    assert apply(SequenceFirst(), quantized, x, 3).shape == (4, 4, 4)
    with pytest.raises(InputError, match="batch is not the leading axis of the inputs of 'dense'"):
        apply(SequenceFirst(), quantized, x, jnp.arange(4))


def test_no_params_are_refused():
    with pytest.raises(InputError, match="params is None; pass the float params"):
        apply(Known(), None, KNOWN_X, 0)


@pytest.fixture(scope="module")
def narrow(qparams):
    plan = qparams.plan
    calib = toy_calibration(Small(), PARAMS, plan, GROUP_OF_T, X, np.int32(0), num_groups=3)
    return jax.jit(quantize, static_argnames="dtype")(PARAMS, calib, dtype="bfloat16")


def test_in_bfloat16_nothing_of_activation_size_is_float32_between_the_sites(narrow):
    jaxpr = jax.make_jaxpr(lambda q, x: apply(Small(), q, x, 1))(narrow, jnp.zeros((64, 4))).jaxpr
    tanh = [eqn.outvars[0].aval.dtype for eqn in equations(jaxpr) if eqn.primitive.name == "tanh"]
    assert tanh == [jnp.bfloat16]


def test_in_bfloat16_the_codes_are_the_same_and_the_output_is_what_came(qparams, narrow):
    wide, small = apply(Small(), qparams, X, 1), apply(Small(), narrow, X, 1)
    np.testing.assert_array_equal(narrow.params["last"]["kernel"].qvalue, qparams.params["last"]["kernel"].qvalue)
    assert wide.dtype == small.dtype == jnp.float32
    assert 20 < sqnr_db(wide, small) < 80
    assert apply(Small(), narrow, X.astype(jnp.bfloat16), 1).dtype == jnp.bfloat16
    np.testing.assert_array_equal(apply(Small(), narrow, x=X, t=1), small)


class Late(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return Small(name="small")(x, 0) + jnp.where(t == 999, 100, 0).reshape(-1, 1)


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("t", [np.float32(999), np.full(6, 999, np.float32)])
def test_in_bfloat16_the_time_is_not_rounded(t, keyword):
    params, rules = {"small": PARAMS}, [dataclasses.replace(r, pattern=f"small/{r.pattern}") for r in RULES]
    plan = toy_plan(Late(), params, rules, X, np.int32(0))
    calib = toy_calibration(Late(), params, plan, [0] * 1000, X, np.int32(0), num_groups=1)
    narrow = quantize(params, calib, dtype=jnp.bfloat16)
    out = apply(Late(), narrow, X, t=t) if keyword else apply(Late(), narrow, X, t)
    assert float(out.min()) > 50, "999 is 1000 in bfloat16"


class Mixed(nn.Module):
    """A network with what is no image among its inputs and params."""

    @nn.compact
    def __call__(self, x, t, size, context=None):
        waves = self.param("waves", lambda key: jnp.array([33.3, 1001.0]))
        extra = self.param("extra", lambda key: [jnp.ones(2), jnp.zeros(2)])
        seen = jnp.where((size == 683).all() & (waves == jnp.array([33.3, 1001.0])).all(), 0.0, jnp.nan)
        h = nn.Dense(6, name="time")(jnp.cos(jnp.arange(4.0) * t)[None])
        h = jnp.tanh(nn.Dense(6, name="first")(x) + h[:, None] + extra[0][0].astype(x.dtype))
        h = nn.LayerNorm(parent=None).apply({"params": {"scale": jnp.ones(6), "bias": jnp.zeros(6)}}, h)
        return {"out": nn.Dense(4, name="last")(h + (0 if context is None else context.mean())) + seen, "n": 3}


@pytest.mark.parametrize("given", [{}, {"context": np.ones((6, 2, 3), np.float32)}])
def test_in_bfloat16_only_images_and_sequences_are_rounded(given):
    x, size = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(np.float32), np.full((6, 2), 683, np.float32)
    params = Mixed().init(jax.random.key(0), x, 0, size)["params"]
    rules = [Rule("time", W8), Rule(".*", W8, A8)]
    plan = toy_plan(Mixed(), params, rules, x, np.int32(0), size)
    calib = toy_calibration(Mixed(), params, plan, [0] * 10, x, np.int32(0), size, num_groups=1)
    wide, narrow = (quantize(params, calib, dtype=dtype) for dtype in (None, "bfloat16"))
    call = jax.jit(functools.partial(apply, Mixed()))
    exact, out = (call(q, x, 3, size, **given) for q in (wide, narrow))
    assert out["n"] == 3 and out["out"].dtype == jnp.float32
    assert jnp.isfinite(out["out"]).all(), "683 is 684 in bfloat16, and 1001 is 1000"
    assert sqnr_db(exact["out"], out["out"]) > 20
    jaxpr = jax.make_jaxpr(lambda q: apply(Mixed(), q, x, 3, size, **given)["out"])(narrow).jaxpr
    assert [eqn.outvars[0].aval.dtype for eqn in equations(jaxpr) if eqn.primitive.name == "tanh"] == [jnp.bfloat16]


@pytest.mark.parametrize("dtype", ["int8", "float64", "bf16", 3])
def test_other_dtypes_are_refused(qparams, dtype):
    calib = toy_calibration(Small(), PARAMS, qparams.plan, GROUP_OF_T, X, np.int32(0), num_groups=3)
    with pytest.raises(InputError, match="give bfloat16, float16, float32, or None"):
        quantize(PARAMS, calib, dtype=dtype)


@pytest.mark.optimized
def test_what_is_made_of_a_text_is_made_once_and_not_at_every_step():
    x, text = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((2, *SHAPE), (2, 3, 5)))
    params = toy_params(Told(), x, np.int32(0), text)
    rules = [Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False))]
    plan = toy_plan(Told(), params, rules, x, np.int32(0), text)
    group_of_t = np.arange(20) // 10
    qparams = quantize(params, toy_calibration(Told(), params, plan, group_of_t, x, np.int32(0), text, num_groups=2))

    def loop(qparams, x, text, times):
        return jax.lax.scan(lambda x, t: (apply(Told(), qparams, x, t, text), None), x, times)[0]

    text_of_program = jax.jit(loop).lower(qparams, x, text, jnp.arange(20)[::-1]).compile().as_text()
    computations = re.split(r"\n(?=%|ENTRY)", text_of_program)
    (entry,) = (lines for lines in computations if lines.startswith("ENTRY"))
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text_of_program))
    inside = "\n".join(lines for lines in computations if lines.split()[0].lstrip("%") in bodies)
    made = {name: rf"(?:fusion|dot|custom-call)\(.*Told/{name}/dot_general" for name in ("in", "q", "k", "v", "out")}
    assert {name for name, pattern in made.items() if re.search(pattern, inside)} == {"in", "q", "out"}
    assert {name for name, pattern in made.items() if re.search(pattern, entry)} >= {"k", "v"}
