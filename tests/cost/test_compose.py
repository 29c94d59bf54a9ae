import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxdq.cost import CHIPS, Call, Compiled, ExecutionMode, Network, Program
from jaxdq.cost import _compose as compose
from jaxdq.cost._lowered import LoweredCall, _shrunk, lowered_call, macs_of
from jaxdq.grid import Scheme
from jaxdq.linen import DotProductAttention, Plan, Rule, Site, make_plan


def conv(batch, side, channels, features, taps=3):
    module = nn.Conv(features, (taps, taps))
    x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.bfloat16)
    params = {
        "kernel": jax.ShapeDtypeStruct((taps, taps, channels, features), jnp.bfloat16),
        "bias": jax.ShapeDtypeStruct((features,), jnp.bfloat16),
    }
    return Call("conv", module, params, (x,), jax.ShapeDtypeStruct((batch, side, side, features), jnp.bfloat16))


def dense(batch, length, channels, features):
    x = jax.ShapeDtypeStruct((batch, length, channels), jnp.bfloat16)
    params = {"kernel": jax.ShapeDtypeStruct((channels, features), jnp.bfloat16)}
    out = jax.ShapeDtypeStruct((batch, length, features), jnp.bfloat16)
    return Call("dense", nn.Dense(features, use_bias=False), params, (x,), out)


def attention(batch, queries, tokens):
    q, k = (jax.ShapeDtypeStruct((batch, length, 8, 40), jnp.bfloat16) for length in (queries, tokens))
    return Call("attention", DotProductAttention(), {}, (q, k, k), q)


@pytest.mark.parametrize(
    "call",
    [
        conv(2, 64, 128, 128),
        conv(8, 32, 640, 640),
        conv(2, 8, 1280, 1280),
        dense(8, 4096, 320, 2560),
        dense(2, 77, 768, 320),
    ],
    ids=lambda call: f"{call.path}{call.inputs[0].shape}",
)
@pytest.mark.parametrize("part", [1, 2, 4])
def test_part_of_a_call_times_its_ratio_is_the_call(call, part):
    small, ratio = _shrunk(call, part)
    assert macs_of(small) * ratio == pytest.approx(macs_of(call))
    assert ratio >= 1


@pytest.mark.parametrize("queries", [4096, 1024, 256])
@pytest.mark.parametrize("tokens", [4096, 1024])
def test_part_of_an_attention_times_its_ratio_is_the_attention(queries, tokens):
    call = attention(8, queries, tokens)
    small, ratio = _shrunk(call, 1)
    shape = [shape.shape for shape in small.inputs]
    assert shape[0][0] == shape[1][0] == 8
    assert shape[0][2] == shape[1][2] == 1
    assert shape[0][1] * shape[1][1] * ratio == 8 * queries * tokens


def test_a_sum_by_hand():
    chip = CHIPS["v5e"]._replace(clock=1e6, bandwidth=1e6)  # a cycle and a byte take a microsecond each
    calls = [dense(1, 10, 4, 4), dense(1, 10, 4, 4)]
    programs = [Program({"matrix": 1000}, 1000, {"s8 x s8": 1}, 0), Program({"other": 1000}, 0, {}, 0)]
    units = [LoweredCall(None, 64.0, 32), LoweredCall(None, 1.0, 50_000)]
    rows = [
        (call, unit, Compiled(program, 0, 5, 1.0)) for call, unit, program in zip(calls, units, programs, strict=True)
    ]
    found = compose._sum(rows, Network(tuple(calls), 2000, 7), ExecutionMode(), chip)
    ends = 2 * (10 * 4 * 2)
    assert found.parts == pytest.approx({"dense layers": 64 + (50_000 + ends) / 1e3, compose.BETWEEN: 2})
    assert found.milliseconds == pytest.approx(sum(found.parts.values()))
    assert found.schedule_milliseconds == pytest.approx(65)
    assert found.memory_bytes == 2000 + 32 + 50_000 + 2 * ends
    assert found.guessed_fraction == pytest.approx(64 / 65)
    assert (found.contractions, found.temp_bytes, found.code_bytes, found.num_programs) == ({"s8 x s8": 1}, 7, 10, 2)


def test_scores_that_are_made_whole_cost_bytes_and_memory():
    call = attention(2, 4096, 4096)
    scores = 2 * 8 * 4096 * 4096 * 2
    row = (call, LoweredCall(None, 1.0, 0), Compiled(Program({}, 0, {}, 0), 0, 0, 0.0))
    whole, blocks = (
        compose._sum([row], Network((call,), 0, 0), ExecutionMode(blocked=way), CHIPS["v5e"]) for way in (False, True)
    )
    assert whole.memory_bytes - blocks.memory_bytes == 2 * scores
    assert (whole.temp_bytes, blocks.temp_bytes) == (scores, 0)


def test_calls_that_differ_in_nothing_but_their_place_are_one_program():
    call = dense(1, 10, 4, 4)
    elsewhere = dataclasses.replace(call, path="elsewhere")
    assert compose._same(call, ExecutionMode(), Plan(())) == compose._same(elsewhere, ExecutionMode(), Plan(()))
    assert compose._same(call, ExecutionMode(), Plan(())) != compose._same(
        dense(2, 10, 4, 4), ExecutionMode(), Plan(())
    )


def test_what_is_computed_between_the_calls_costs_its_cycles_where_they_are_more_than_its_bytes(monkeypatch):
    chip = CHIPS["v5e"]._replace(clock=1e6, bandwidth=1e6, lanes=1000)
    million = Compiled(Program({"other": 2000}, 0, {}, 0), 0, 0, 0.0)
    monkeypatch.setattr(compose, "compile_for", lambda programs, chip, jobs: [million for _ in programs])
    network = Network((), 1000, 0, ((("tanh", "float32"), 2**21), (("arithmetic", "float32"), 5000)))
    cycles = compose._elementwise_cycles(network, chip, None)
    assert cycles == 2 * 2000 + 5
    assert compose._sum([], network, ExecutionMode(), chip, cycles).parts == {compose.BETWEEN: pytest.approx(4.005)}
    assert compose._sum([], network, ExecutionMode(), chip, 10).parts == {compose.BETWEEN: pytest.approx(1)}


def test_grids_are_looked_up_once_a_call_where_they_are_static(monkeypatch):
    asked = []
    once = Compiled(Program({"other": 4000}, 0, {}, 0), 0, 0, 0.0)
    monkeypatch.setattr(compose, "compile_for", lambda programs, chip, **_: asked.extend(programs) or [once])
    site = Site("q", "dense", (128, 128), (1,), 64, 64 * 128 * 128)
    plan = make_plan([Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False))], [site])
    static, dynamic = (ExecutionMode(quantized=True, act=act) for act in ("static", "dynamic"))
    chip = CHIPS["v5e"]
    assert [compose._look_up_cycles(mode, plan, chip) for mode in (static, dynamic, ExecutionMode())] == [4000, 0, 0]
    assert compose._look_up_cycles(static, Plan(()), chip) == 0
    looked_up = compose._sum([], Network((), 10**6, 0), static, chip, 0.0, 4000.0)
    assert looked_up.parts[compose.LOOK_UP] == pytest.approx(4000 / chip.clock * 1e3)
    assert looked_up.milliseconds == pytest.approx(sum(looked_up.parts.values()))
    (program,) = asked
    text = program.mlir_module()
    assert "stablehlo.case" in text and "tensor<8x1xf32>" in text and "tensor<1000xi32>" in text


def test_a_call_that_shares_its_input_is_priced_on_the_codes_of_the_first():
    q, k = (dataclasses.replace(dense(8, 64, 128, 128), path=path) for path in "qk")
    site = Site("q", "dense", (128, 128), (1,), 64, 64 * 128 * 128)
    sites = [site, dataclasses.replace(site, path="k", reads="q")]
    plan = make_plan([Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False))], sites)
    static, dynamic = (ExecutionMode(quantized=True, act=act) for act in ("static", "dynamic"))
    for mode, wanted in ((static, jnp.int8), (dynamic, jnp.bfloat16), (ExecutionMode(), jnp.bfloat16)):
        first, second = (compose._on_codes(mode, plan, call) for call in (q, k))
        assert first == q and second.inputs[0].dtype == wanted
    text = [lowered_call(compose._on_codes(static, plan, call), static, plan.by_path[call.path]) for call in (q, k)]
    assert ["round_nearest_even" in unit.exported.mlir_module() for unit in text] == [True, False]
    of_conv = dataclasses.replace(conv(8, 32, 640, 640), path="k")
    assert compose._on_codes(static, plan, of_conv) == of_conv  # it may pad its codes first
    # The codes that come are half as many bytes, written and read.
    ends = [compose.ends_bytes(compose._on_codes(static, plan, call), static) for call in (q, k)]
    assert ends[0] == ends[1]
    assert text[0].exported.out_avals == text[1].exported.out_avals
