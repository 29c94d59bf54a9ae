import jax
import jax.numpy as jnp
import pytest

from jaxdq.cost import read_program
from jaxdq.cost._program import FRAME

pytestmark = pytest.mark.optimized


def priced(cycles):
    return f'backend_config={{"bundle_analysis_data":{{"estimated_cycles":"{cycles}"}}}}'


def guessed(cycles):
    return f'backend_config={{"window_config":{{"kernel_window_bounds":[],"estimated_cycles":"{cycles}"}}}}'


# Shaped as a TPU's compiler writes it: a dot in a fusion, a loop of three rounds, a conditional, and a frame.
TEXT = f"""HloModule jit_f

%fused_dot (a: bf16[8,8], b: s8[8,8]) -> f32[8,8] {{
  %a = bf16[8,8]{{1,0}} parameter(0)
  %b = s8[8,8]{{1,0:T(8,128)(4,1)}} parameter(1)
  ROOT %dot.1 = f32[8,8]{{1,0}} convolution(%a, %b), dim_labels=bf_io->bf
}}

%condition (i: s32[]) -> pred[] {{
  %i = s32[] parameter(0)
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}

%body (i.1: s32[]) -> s32[] {{
  %i.1 = s32[] parameter(0)
  ROOT %next = s32[] fusion(%i.1), calls=%small, {priced(10)}
}}

%small (p: s32[]) -> s32[] {{
  ROOT %p = s32[] parameter(0)
}}

%cheap (q: s32[]) -> s32[] {{
  ROOT %q = s32[] fusion(%q0), calls=%small, {priced(1)}
}}

%dear (r: s32[]) -> s32[] {{
  ROOT %r = s32[] copy(%r0), {priced(100)}
}}

ENTRY %main (x: bf16[8,8], w: s8[8,8]) -> f32[8,8] {{
  %x = bf16[8,8]{{1,0}} parameter(0)
  %w = s8[8,8]{{1,0}} parameter(1)
  %framed = bf16[8,8]{{1,0}} fusion(%x), calls=%small, metadata={{op_name="jit(f)/{FRAME}/mul"}}, {priced(5000)}
  %loop = s32[] while(%x), condition=%condition, body=%body
  %choice = s32[] conditional(%x, %x, %x), branch_computations={{%cheap, %dear}}
  %guess = s32[] fusion(%x), calls=%small, {guessed(28)}
  ROOT %out = f32[8,8]{{1,0}} fusion(%framed, %w), calls=%fused_dot, {priced(1000)}, {guessed(999)}
}}
"""


def test_golden_program_by_hand():
    found = read_program(TEXT)
    assert found.cycles == {"matrix": 1000, "other": 3 * 10 + 7, "copy": 100}
    assert found.guessed == 7
    assert found.contractions == {"bf16 x s8": 1}
    assert found.conditionals == 0


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_contractions_of_a_compiled_program(dtype):
    x = jnp.ones((4, 4), dtype)
    found = read_program(
        jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type="float32")).lower(x).compile().as_text()
    )
    assert sum(found.contractions.values()) == 1


def test_a_conditional_counts_where_a_branch_contracts():
    def choose(way):
        return lambda i, x: jax.lax.cond(i, way, lambda x: x, x)

    x, i = jnp.ones((4, 4)), jnp.asarray(True)
    texts = [jax.jit(choose(way)).lower(i, x).compile().as_text() for way in (lambda x: x @ x, lambda x: x + 1)]
    assert [read_program(text).conditionals for text in texts] == [1, 0]


def test_calls_of_a_gpus_libraries_are_contractions():
    text = """ENTRY %main (x: s8[8,8]) -> s32[8,8] {
  %x = s8[8,8]{1,0} parameter(0)
  %other = s8[8,8]{1,0} custom-call(%x), custom_call_target="Sharding"
  ROOT %dot = (s32[8,8]{1,0}, s8[16]{0}) custom-call(%x, %other), custom_call_target="__cublas$gemm"
}
"""
    assert read_program(text).contractions == {"s8 x s8": 1}
