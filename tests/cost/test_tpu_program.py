"""What the TPU's own compiler makes of a quantized network. Needs `pip install 'jaxdq[tpu-model]'`, and no TPU."""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export
from scripts_by_name import script

import jaxdq
from jaxdq import ops
from jaxdq.calibration import plan_for, weight_grids
from jaxdq.cost import CHIPS, compile_for, export_framed
from jaxdq.cost._compiler import NEEDS, _Worker
from jaxdq.cost._program import _CALLED, _computations
from jaxdq.grid import QParams, QTensor, Scheme, quantize
from jaxdq.linen import Calibration, unfitted_acts
from jaxdq.models.unet._blocks import ResnetBlock
from jaxdq.models.unet._transformer import TORCH, TransformerBlock
from jaxdq.observers import minmax_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDS)), reason="the TPU's compiler is not installed"),
]
GROUPS = 8


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_integer_sites_are_int8_contractions_and_no_conditional_stands_around_one(weight_bits):
    denoiser = jaxdq.load_denoiser("digits")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), denoiser.params)
    plan = plan_for(denoiser, jaxdq.recipes.minmax(weight_bits, 8))
    acts = unfitted_acts(plan.columns, 1000, num_groups=GROUPS, scale=0.05)
    calib = Calibration(weight_grids(params, plan, minmax_weights()), acts, plan)
    leaves, tree = jax.tree.flatten(jaxdq.quantize(params, calib))

    def call(x, t, *leaves):
        return jaxdq.apply(denoiser.module, jax.tree.unflatten(tree, leaves), x, t)

    x, t = jax.ShapeDtypeStruct((8, *denoiser.shape), jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.int32)
    program = export.export(jax.jit(call), platforms=["tpu"])(x, t, *leaves)
    (found,) = compile_for([program], CHIPS["v5e"], profile=False)
    integer = sum(site.is_integer for site in plan.sites)
    contractions = found.program.contractions
    whole = {operands: n for operands, n in contractions.items() if set(operands.split(" x ")) <= {"s8", "s4"}}
    rest = {operands: n for operands, n in contractions.items() if operands not in whole}
    # A convolution may be a dot for each of its taps; a product with one row may be no contraction at all.
    assert sum(whole.values()) >= integer
    assert sum(rest.values()) <= len(plan.sites) - integer
    assert not [operands for operands in rest if re.search(r"\bs\d", operands)], rest
    assert found.program.conditionals == 0


# Stable Diffusion's widest activations.
BLOCKS = {
    "residual": (lambda style: ResnetBlock(320, style), (8, 64, 64, 320), (1, 1280)),
    "transformer": (lambda style: TransformerBlock(8, TORCH.approximate_gelu), (8, 4096, 320), (8, 77, 768)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_no_sums_and_no_float32_of_an_activations_size_are_kept(name):
    make, shape, other = BLOCKS[name]
    composition = script("bench_composition")
    act = Scheme(8, symmetric=False)
    whole, _ = composition.assembled(make(composition.STYLE), shape, other, composition.MODES["W8A8"], act)
    kept = arrays_kept(whole)
    most = {kind: max((size for other, size in kept if other == kind), default=0) for kind in ("bf16", "f32", "s32")}
    assert most["bf16"] >= math.prod(shape)  # the reading sees the block's own input
    assert max(most["f32"], most["s32"]) < math.prod(shape) / 8, most


@pytest.mark.parametrize("features", [(384,), (4, 96)])
def test_a_layers_two_rows_are_made_by_one_operation(features):
    """Rescaling, and the bias less the zero point's share: an operation has its start, and waits for its arguments."""
    scheme, (terms, out) = Scheme(8, symmetric=False), (256, math.prod(features))
    kernel = (terms, *features)

    def layer(inputs, given):
        codes, scale, zero_point, row, code_sum, bias = given
        grid = QParams(scale, zero_point)
        weight = QTensor(codes, QParams(row), Scheme(8, channel_axis=-1), code_sum)
        dims = (((1,), (0,)), ((), ()))
        return ops.dot_general(quantize(*inputs, grid, scheme), weight, dims, bias=bias, out_dtype=jnp.bfloat16)

    shapes = [(kernel, "int8"), ((), "float32"), ((), "int32")]
    shapes += [((1, *features), "float32"), ((1, *features), "int32"), (features, "float32")]
    given = [jax.ShapeDtypeStruct(*each) for each in shapes]
    program = export_framed(layer, (jax.ShapeDtypeStruct((512, terms), jnp.bfloat16),), given)
    computations, entry = _computations(compiled_text(program))
    makers = [line for line in computations[entry] if line.op in ("fusion", "multiply", "subtract")]
    rows = [line for line in makers if sizes_of(line.type) and set(sizes_of(line.type)) == {out}]
    assert [len(sizes_of(line.type)) for line in rows] == [2], [line.type for line in rows]


def sizes_of(kind):
    return [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\bf32\[([\d,]+)\]", kind)]


@pytest.mark.parametrize("wide", [jnp.float32, jnp.int32])
def test_the_reading_sees_what_is_kept_between_two_operations(wide):
    def between(x):
        return (jax.lax.optimization_barrier((x * 3).astype(wide)) * 5).astype(jnp.bfloat16)

    x = jax.ShapeDtypeStruct((8, 64, 64, 320), jnp.bfloat16)
    found = arrays_kept(export.export(jax.jit(between), platforms=["tpu"])(x))
    assert ({jnp.float32: "f32", jnp.int32: "s32"}[wide], math.prod(x.shape)) in found


def arrays_kept(program):
    """(dtype, elements) of what a program's own instructions make, in HBM or in the fast memory (a v5e's is large).

    Of loops what is in HBM only: attention takes its queries in blocks so that their scores are in the fast one.
    """
    text = compiled_text(program)
    computations, _ = _computations(text)
    lines = [line for each in computations.values() for line in each]
    inside = {name for line in lines if line.op != "call" for name in _CALLED.findall(line.rest)}  # no memory of theirs
    loops = set(re.findall(r"body=%?([\w.\-]+)", text))
    return {
        (kind, math.prod(map(int, dims.split(","))))
        for name, each in computations.items()
        if name not in inside
        for line in each
        for kind, dims, layout in re.findall(r"\b([a-z]+\d+)\[([\d,]+)\](\{[^}]*\})?", line.type)
        if name not in loops or "S(1)" not in layout
    }


def compiled_text(program):
    worker = _Worker(CHIPS["v5e"], limit_s=600.0)
    try:
        answer = worker._ask(bytes(program.serialize()), profile=False)
    finally:
        worker.stop()
    assert answer is not None and "hlo" in answer, answer
    return answer["hlo"]
