"""Running a network: on integers, or in float with its activations shown to a visitor."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._common.checks import check_array, check_float_params
from jaxdq._common.errors import InputError
from jaxdq._common.trees import unboxed
from jaxdq.grid import QParams, qparams_from_tensor
from jaxdq.linen._attention import attend_as_in_diffusers, attends_as_in_diffusers
from jaxdq.linen._belonging import calling, check_belongs
from jaxdq.linen._handlers import handlers_of
from jaxdq.linen._kinds import is_attention, kind_of, path_of
from jaxdq.linen._parts import dequantize_kernel
from jaxdq.linen._plan import Plan, SitePlan
from jaxdq.linen._quantized import Calibration, QuantizedParams
from jaxdq.linen._run import Visitor as Visitor
from jaxdq.linen._run import run
from jaxdq.linen._switch import Switch
from jaxdq.linen._tables import check_times, nan_at_unknown_times, tables_in
from jaxdq.linen._time import argument_names, grids_at, per_row, time_argument, with_time_per_row
from jaxdq.linen._trace import trace
from jaxdq.linen._tree import kernel_at, with_kernels


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the module with its own arguments, on integers where the params are quantized. Pure and jittable.

    The module's time argument (the parameter named t, timestep, timesteps or time; else the second one) picks the
    activation scales: a scalar by one `lax.switch` over the groups at the top of the call (a gather above 16 groups), a
    vector [B] by one gather and a scale per row. Both give the same numbers. A t between whole times has the scales of
    the nearest one. A module that can't take a scalar t is given one for each row.

    Args:
        module: The linen module that was calibrated, or a wrapper whose `apply(variables, ...)` calls it.
        params: `QuantizedParams`, or float params, and then this is `module.apply({"params": params}, ...)`.
        *args: The module's own positional arguments.
        **kwargs: The module's own keyword arguments (`rngs`, `mutable` and `method` reach `module.apply`).

    Returns:
        What the module returns.

    Raises:
        InputError: Module and params that don't belong together, as far as can be seen before anything runs; a concrete
            t outside [0, T], or one that tables over time do not have. A traced one makes the activation scales NaN,
            and with them the output
            of every integer site but those that are called with a condition, whose scales are the same at every t:
            nothing can be raised under jit.

    The gradient to the module's inputs is 0 through integer sites, since codes are constant almost everywhere:
    differentiate the float params where a gradient is wanted (classifier guidance, say).

    Example:
        `eps = jaxdq.apply(denoiser.module, qparams, x, t)`
    """
    if params is None or isinstance(params, Calibration):
        came = "None" if params is None else "a calibration"
        raise InputError(f"params is {came}; pass the float params, or what jaxdq.quantize returned.")
    if isinstance(module, type) or not callable(getattr(module, "apply", None)):
        raise InputError(f"module is a {type(module).__name__}; pass the linen module itself, such as denoiser.module.")
    if isinstance(params, Switch):
        t = time_argument(module, args, kwargs)
        return params.run(lambda choice: apply(module, choice, *args, **kwargs), t)
    if not isinstance(params, QuantizedParams):
        check_float_params(params, "the float params, or what jaxdq.quantize returned")

        def call(*args: Any, **kwargs: Any) -> Any:
            return module.apply({"params": params}, *args, **kwargs)

        return with_time_per_row(call, module, args, kwargs)
    if params.acts.columns != params.plan.columns:
        raise InputError("the plan of the quantized params is not the one that their grids were selected for.")
    if args:
        check_array(f"the network's first argument, {argument_names(module)[0]},", args[0])
    t = time_argument(module, args, kwargs)
    tables = tables_in(params.params)
    check_times(tables, t)
    scale, zero_point = grids_at(params.acts, t)
    scale = nan_at_unknown_times(tables, t, scale)

    def grid_of(site: SitePlan, name: str, x: jax.Array) -> QParams:
        assert site.act is not None
        column, _ = params.plan.activations[name]
        if column in params.plan.step_invariant_columns:
            first = params.acts.zero_point[0, column]
            return QParams(params.acts.scale[0, column], None if site.act.symmetric else first)
        if scale.ndim == 2 and not site.site.batch_first:
            raise InputError(
                f"t is a vector and the batch is not the leading axis of the inputs of '{site.path}', so rows can't "
                f"have scales of their own; call with one scalar t."
            )
        zero = None if site.act.symmetric else per_row(zero_point[..., column], x)
        return QParams(per_row(scale[..., column], x), zero)

    return _apply_on_integers(module, params, grid_of, args, kwargs)


def apply_dynamic(module: nn.Module, params: QuantizedParams, *args: Any, **kwargs: Any) -> Any:
    """`apply` with the range of every tensor measured at every call in place of calibrated ones: to compare with.

    One pass more over each input, which can't join what makes it; the tables of `params` play no part.
    """

    def grid_of(site: SitePlan, name: str, x: jax.Array) -> QParams:
        assert site.act is not None
        return qparams_from_tensor(x, site.act)

    return _apply_on_integers(module, params, grid_of, args, kwargs)


def _apply_on_integers(
    module: nn.Module,
    params: QuantizedParams,
    grid_of: Callable[[SitePlan, str, jax.Array], QParams],
    args: tuple,
    kwargs: dict,
) -> Any:
    remedy = "pass what jaxdq.quantize or jaxdq.restore returned"
    check_belongs(params.params, params.plan, "qparams", remedy, quantized=True)
    dtype, is_inside, called_paths = params.plan.dtype, False, set[str]()
    t = time_argument(module, args, kwargs)
    handlers = handlers_of(params, grid_of, t)
    correction = params.correction
    if correction is not None:
        args, kwargs = _with_first(module, args, kwargs, lambda x: correction.on_input(x, t))

    def visit(next_fun: Callable, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        nonlocal is_inside
        if not dtype or context.method_name != "__call__":
            return called(next_fun, call_args, call_kwargs, context)
        if context.module.path or is_inside:
            out = called(next_fun, call_args, call_kwargs, context)
            # What a float32 vector, such as an embedding of the time, makes float32 would make all that follows so.
            free = kind_of(context.module) is not None and getattr(context.module, "dtype", None) is None
            return out.astype(dtype) if free else out
        is_inside = True
        try:
            call = functools.partial(called, next_fun, context=context)
            return _in_dtype(dtype, call, context.module, call_args, call_kwargs)
        finally:
            is_inside = False

    def called(next_fun: Callable, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if is_attention(context) and _has_integer_product(params.plan, path_of(context.module)):
            return context.module.products(*call_args, **call_kwargs)
        if context.method_name == "__call__" and attends_as_in_diffusers(context.module, *call_args, **call_kwargs):
            return attend_as_in_diffusers(context.module, *call_args, **call_kwargs)
        handler = handlers.get(path_of(context.module)) if context.method_name == "__call__" else None
        if handler is None:
            return next_fun(*call_args, **call_kwargs)
        called_paths.add(path_of(context.module))
        return handler(next_fun, context.module, call_args, call_kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(visit):
            return module.apply({**params.variables, "params": _float_where_weight_only(params)}, *args, **kwargs)

    with calling(module, params.plan, called_paths, is_whole="method" not in kwargs):
        out = with_time_per_row(call, module, args, kwargs)
    return out if correction is None else correction.on_output(out, t)


def _with_first(module: Any, args: tuple, kwargs: dict, change: Callable[[Any], Any]) -> tuple[tuple, dict]:
    """The arguments of a call with the first of them changed."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = argument_names(module)[0]
    return args, {**kwargs, name: change(kwargs[name])}


def _in_dtype(dtype: str, call: Callable, module: nn.Module, args: tuple, kwargs: dict) -> Any:
    """The network's call with its images and sequences cast to a dtype, and its floats cast back.

    Those are the first float argument of two axes or more, and all of three or more: times, sizes and other small
    numbers would be rounded, and networks compute with them in float32 for a reason.
    """

    def is_float(value: Any) -> bool:
        return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)

    def cast(tree: Any, to: Any, least_axes: int = 0) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if is_float(x) and x.ndim >= least_axes else x, tree)

    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    floats = (leaf for leaf in jax.tree.leaves(list(given.values())[1:]) if is_float(leaf) and leaf.ndim > 1)
    first = next(floats, None)
    out = call(*jax.tree.map(lambda x: cast(x, dtype, 2 if x is first else 3), (args, kwargs)))
    return out if first is None else cast(out, jnp.result_type(first))


def apply_visited(module: nn.Module, params: Any, visitor: Visitor, *args: Any, **kwargs: Any) -> Any:
    """Runs the module in float and passes every site's inputs through `visitor(name, x) -> x` on the way.

    To observe, the visitor returns x; to simulate quantization, it returns a fake-quantized x. Names are those of
    `Site.inputs`. Bodies of `nn.remat` and `nn.scan` are run as if they stood in the network, so that the visitor may
    keep what it sees.
    """
    params = unboxed(params)
    return run(trace(module, params, *args), visitor, params, args)


def dequantize_params(qparams: QuantizedParams) -> Any:
    """The params tree in float, every kernel as its codes say: what the float twin of the network runs on."""
    sites = (site for site in qparams.plan.sites if site.weight is not None)
    kernels = {site.path: dequantize_kernel(kernel_at(qparams.params, site.path), site.site.kind) for site in sites}
    return with_kernels(qparams.params, kernels)


def _has_integer_product(plan: Plan, path: str) -> bool:
    products = (plan.by_path.get(f"{path}/{name}" if path else name) for name in ("scores", "values"))
    return any(site is not None and site.is_integer for site in products)


def _float_where_weight_only(qparams: QuantizedParams) -> Any:
    """The params tree with float kernels at sites whose inputs are float: those compute in float."""
    # In the kernel's own dtype: in a network of bfloat16 a float32 kernel would make float32 of all that follows.
    weight_only = {
        site.path: (site.site.kind, site.site.dtype)
        for site in qparams.plan.sites
        if site.weight is not None and site.act is None
    }

    def walk(node: Any, path: str) -> Any:
        if not hasattr(node, "items"):
            return node
        out = {key: walk(value, f"{path}/{key}" if path else key) for key, value in node.items()}
        if path not in weight_only:
            return out
        kind, dtype = weight_only[path]
        return {**out, "kernel": dequantize_kernel(out["kernel"], kind).astype(dtype)}

    return walk(qparams.params, "") if weight_only else qparams.params
