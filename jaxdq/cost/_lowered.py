"""A call as a program of its own, in each execution mode, for the compiler to price."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from jaxdq import ops
from jaxdq.cost._calls import NORMS, Call, bytes_of
from jaxdq.cost._compiler import export_framed
from jaxdq.grid import QParams, QTensor, Scheme, dequantize, qparams_from_tensor, quantize, stored_bytes
from jaxdq.linen import (
    DotProductAttention,
    Parts,
    Plan,
    SitePlan,
    call_on_codes,
    call_on_integers,
    call_on_parts,
    count_macs,
    cut_codes,
    grids_at,
    queries_at_a_time,
    unfitted_acts,
)

# A call is priced on fewer rows of its image or fewer tokens, to which its cycles are in proportion: so many
# multiply-accumulates, rows and columns of an image, rows of a matrix, and tokens that are attended to are left. A
# convolution keeps the form that it has on the whole image.
_MACS, _IMAGE_ROWS, _IMAGE_COLUMNS, _MATRIX_ROWS, _TOKENS = 2e9, 8, 32, 1024, 1024
_LANES = 128
# Groups and times of the tables that a call's grids are looked up in: what recipes make unless told otherwise.
GROUPS, TIMESTEPS = 8, 1000
# One part in how many: the profiler gives up on some sizes.
ATTEMPTS = (1, 2, 4, 8)


class ExecutionMode(NamedTuple):
    """How a variant of the network runs its calls.

    Attributes:
        dtype: Dtype of activations and of what stays in float.
        blocked: Attention in blocks of queries, else with all scores at once.
        quantized: Whether kernels are quantized, as the plan has it.
        act: "static" or "dynamic" integers, or "float".
    """

    dtype: Any = jnp.bfloat16
    blocked: bool = True
    quantized: bool = False
    act: str = "float"


class LoweredCall(NamedTuple):
    """What one call costs beside its program's cycles.

    Attributes:
        exported: The program, for a TPU.
        ratio: Cycles of the call for one of the program's.
        param_bytes: Bytes that the call reads beside its inputs.
    """

    exported: export.Exported
    ratio: float
    param_bytes: int


def lowered_call(call: Call, mode: ExecutionMode, site: SitePlan | None, attempt: int = 0) -> LoweredCall:
    """The program of a call as this variant runs it.

    Args:
        call: Which; of int8 where it is called with codes that an earlier one made.
        mode: How the variant runs.
        site: The plan's; None where it has none.
        attempt: Index into `ATTEMPTS`.
    """
    small, ratio = _shrunk(call, ATTEMPTS[attempt])
    function, params = _function(small, mode, site)
    param_bytes = stored_bytes(_function(call, mode, site)[1])
    with ops.lowered_as(call.inputs[0].shape):
        return LoweredCall(export_framed(function, small.inputs, params), ratio, param_bytes)


def lowered_function(name: str, dtype: str, elements: int) -> LoweredCall:
    """The program of a function of one element, such as "tanh", that is computed between calls."""
    x = jax.ShapeDtypeStruct((_MATRIX_ROWS, 8 * _LANES), dtype)
    exported = export_framed(lambda inputs, _: getattr(jax.lax, name)(inputs[0]), (x,))
    return LoweredCall(exported, elements / math.prod(x.shape), 0)


def lowered_look_up(plan: Plan) -> LoweredCall:
    """The program that picks the grids of a plan's activations at a time, once a call, from tables of `GROUPS` rows."""
    acts = jax.eval_shape(lambda: unfitted_acts(plan.columns, TIMESTEPS, num_groups=GROUPS))
    x, t = _array((8, _LANES), jnp.float32), _array((), jnp.int32)

    def function(inputs: tuple, given: Any) -> jax.Array:
        scale, zero_point = grids_at(*given)
        return inputs[0] * scale[0] + zero_point[-1]  # some layer's numbers, as scalars

    return LoweredCall(export_framed(function, (x,), (acts, t)), 1.0, stored_bytes(acts))


def macs_of(call: Call) -> int:
    """Multiply-accumulates of a call."""
    function, params = _function(call, ExecutionMode(), None)
    return count_macs(jax.make_jaxpr(function)(call.inputs, params).jaxpr)


def _function(call: Call, mode: ExecutionMode, site: SitePlan | None) -> tuple[Callable, Any]:
    """(function of the inputs and of further arguments, shapes of those)."""
    module = call.module
    if module is None:
        return lambda inputs, _: jax.lax.dot_general(inputs[0], inputs[1], call.equation), ()
    if isinstance(module, DotProductAttention):
        method = "__call__" if mode.blocked else "products"
        return lambda inputs, _: module.apply({}, *inputs, method=method), ()
    if not mode.quantized or site is None or site.weight is None:
        return lambda inputs, params: module.apply({"params": params}, *inputs), call.params
    is_float = mode.act == "float" or site.act is None
    params = call.params | {"kernel": _kernel(call.params["kernel"], site, site.weight, is_cut=not is_float)}
    if is_float or site.act is None:
        dtype = call.params["kernel"].dtype

        def weight_only(inputs: tuple, params: Any) -> jax.Array:
            kernel = dequantize(params["kernel"]).astype(dtype)
            return jnp.asarray(module.apply({"params": params | {"kernel": kernel}}, *inputs))

        return weight_only, params
    scheme = site.act
    if "bias" in params:  # as jaxdq.quantize leaves it
        params = params | {"bias": _array(params["bias"].shape, jnp.float32)}

    def integer(inputs: tuple, given: Any) -> jax.Array:
        params, grid = given
        grids = [qparams_from_tensor(x, scheme) if mode.act == "dynamic" else grid for x in inputs]
        kernel = params.get("kernel")

        def visit(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> jax.Array:
            if args[0].dtype == jnp.int8:  # made by an earlier call
                return call_on_codes(context.module, [QTensor(args[0], grids[0], scheme)], mode.dtype)
            if isinstance(kernel, Parts):
                own = grids * (len(kernel.parts) if site.has_own_inputs else 1)
                return call_on_parts(context.module, args[0], kernel, own, scheme, mode.dtype)
            return call_on_integers(context.module, args, grids, scheme, mode.dtype)

        with nn.intercept_methods(visit):
            return jnp.asarray(module.apply({"params": params}, *inputs))

    return integer, (params, _grid((), scheme))


def _kernel(kernel: jax.ShapeDtypeStruct, site: SitePlan, weight: Scheme, *, is_cut: bool) -> Any:
    """The shapes of a kernel on its grid, a scale for each output; of each part, where the plan cuts it."""
    axes = site.site.channel_axes
    scales = tuple(size if axis in axes else 1 for axis, size in enumerate(kernel.shape))

    def whole(w: jax.Array, grid: QParams) -> QTensor:
        return site.with_code_sum(quantize(w, grid, weight))

    def in_parts(w: jax.Array, grid: QParams) -> Parts:
        # The last part takes what the call's channels were filled up with.
        sizes = (*site.parts[:-1], w.shape[site.input_axis] - sum(site.parts[:-1]))
        each = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, w.shape), grid)
        codes = cut_codes(quantize(w, each, weight), sizes, site.input_axis)
        narrow = (dataclasses.replace(part, qparams=grid) for part in codes.parts if isinstance(part, QTensor))
        return Parts(tuple(site.with_code_sum(part) for part in narrow))

    return jax.eval_shape(in_parts if site.parts and is_cut else whole, kernel, _grid(scales, weight))


def _grid(shape: tuple[int, ...], scheme: Scheme) -> QParams:
    return QParams(_array(shape, jnp.float32), None if scheme.symmetric else _array(shape, jnp.int32))


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    """A shape where an array is expected: a program is made of it, and nothing is computed."""
    return jax.ShapeDtypeStruct(shape, dtype)


def ends_bytes(call: Call, mode: ExecutionMode) -> int:
    """What a call reads and writes beside its params; scores that are made whole are written, and read again.

    Codes that an earlier call made are counted where they are read, as written too: no more than they cost.
    """
    codes = [x for x in call.inputs if x.dtype == jnp.int8]
    ends = bytes_of(*call.inputs, *codes, call.output)
    if isinstance(call.module, DotProductAttention) and not mode.blocked:
        batch, queries, heads, _ = call.inputs[0].shape
        return ends + 2 * batch * heads * queries * call.inputs[1].shape[1] * call.inputs[0].dtype.itemsize
    return ends


def _shrunk(call: Call, part: int) -> tuple[Call, float]:
    """(the call on fewer rows, how many of it make the whole)."""
    if call.kind == "attention":
        return _shrunk_attention(call, part)
    first = call.inputs[0]
    is_image = first.ndim == 4 and isinstance(call.module, (nn.Conv, *NORMS))
    if first.ndim != 3 and not is_image:
        return call, 1.0
    columns = _IMAGE_COLUMNS if is_image and first.shape[2] % _IMAGE_COLUMNS == 0 else first.shape[2]
    across = first.shape[2] // columns
    least = (_IMAGE_ROWS if is_image else max(1, _MATRIX_ROWS // first.shape[0])) // part
    macs, length = macs_of(call) / across, first.shape[1]
    while length % 2 == 0 and length // 2 >= least and (not macs or macs * length / first.shape[1] > _MACS / part):
        length //= 2
    down = first.shape[1] // length
    small = _resized(_resized(first, 1, length), 2, columns)
    small_call = dataclasses.replace(call, inputs=(small,))
    return (_in_whole_lanes(small_call) if part > 1 else small_call), down * across


def _in_whole_lanes(call: Call) -> Call:
    """A convolution whose channels are filled up to what a chip makes of them anyway, and its profiler knows better."""
    kernel = call.params.get("kernel")
    if not isinstance(call.module, nn.Conv) or kernel.shape[-2] != call.inputs[0].shape[-1]:
        return call
    lanes, features = _whole_lanes(kernel.shape[-2]), _whole_lanes(kernel.shape[-1])
    params = {name: _resized(leaf, -1, features) for name, leaf in call.params.items()}
    params["kernel"] = _resized(params["kernel"], -2, lanes)
    inputs = (_resized(call.inputs[0], 3, lanes),)
    return dataclasses.replace(call, module=call.module.clone(features=features), inputs=inputs, params=params)


def _shrunk_attention(call: Call, part: int) -> tuple[Call, float]:
    """One head and one block of its queries; of a bare product, one of what it does side by side."""
    if call.module is None:
        (_, (lhs, rhs)) = call.equation
        inputs, ratio = call.inputs, 1
        if lhs and rhs:
            ratio = inputs[0].shape[lhs[0]]
            inputs = (_resized(inputs[0], lhs[0], 1), _resized(inputs[1], rhs[0], 1))
        return dataclasses.replace(call, inputs=inputs), ratio
    batch, queries, heads, _ = call.inputs[0].shape
    tokens = call.inputs[1].shape[1]
    block = queries_at_a_time(batch, tokens)
    block = block // part if queries % block == 0 else queries
    seen = _TOKENS if tokens % _TOKENS == 0 else tokens if part == 1 else _whole_lanes(tokens)
    lengths = zip(call.inputs, (block, seen, seen), strict=True)
    q, k, v = (_resized(_resized(shape, 2, 1), 1, length) for shape, length in lengths)
    return dataclasses.replace(call, inputs=(q, k, v)), heads * queries / block * max(1, tokens / seen)


def _whole_lanes(size: int) -> int:
    """The next multiple of the lanes."""
    return -(-size // _LANES) * _LANES


def _resized(shape: jax.ShapeDtypeStruct, axis: int, size: int) -> jax.ShapeDtypeStruct:
    axis %= len(shape.shape)
    return jax.ShapeDtypeStruct((*shape.shape[:axis], size, *shape.shape[axis + 1 :]), shape.dtype)
