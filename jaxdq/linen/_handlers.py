"""How each place of a quantized network runs: one map from paths to handlers, built from the plan."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.grid import QParams, QTensor, Scheme
from jaxdq.grid import quantize as quantize_tensor
from jaxdq.linen._kinds import inputs_of, kind_of, layer_fault
from jaxdq.linen._parts import Parts, call_on_parts, unsplittable
from jaxdq.linen._plan import SitePlan
from jaxdq.linen._quantized import QuantizedParams
from jaxdq.linen._tables import from_table, tables_in

# (next_fun, bound module, args, kwargs) -> what the module returns; `next_fun` is flax's own way.
Handler = Callable[[Callable, nn.Module, tuple, dict], Any]
GridOf = Callable[[SitePlan, str, jax.Array], QParams]


def handlers_of(params: QuantizedParams, grid_of: GridOf, t: jax.Array | np.ndarray) -> dict[str, Handler]:
    """Path -> handler of every module that does not run as flax would run it.

    Args:
        params: Params of the network.
        grid_of: (site, name of an input, the input) -> its grid in this call.
        t: The model time of this call, a scalar or one for each row.
    """
    integer = {site.path: _on_integers(site, grid_of) for site in params.plan.sites if site.act is not None}
    tables = tables_in(params.params)
    dtypes = {path: site.site.dtype for path, site in params.plan.by_path.items()}
    return integer | {path: from_table(path, table, t, dtypes.get(path, "")) for path, table in tables.items()}


def _on_integers(site: SitePlan, grid_of: GridOf) -> Handler:
    def handler(next_fun: Callable, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        kind = kind_of(module)
        if kind is None:
            return next_fun(*args, **kwargs)
        inputs = inputs_of(module, args, kwargs)
        assert site.act is not None
        kernel = None if kind.name == "product" else module.get_variable("params", "kernel")
        if isinstance(kernel, Parts):
            return _on_parts(site, kernel, module, inputs[0], grid_of)
        # A layer of the same path that is called as a function brings a float kernel of its own.
        if kernel is not None and not isinstance(kernel, QTensor):
            return next_fun(*args, **kwargs)
        if fault := "" if kernel is None else layer_fault(module, *inputs):
            raise InputError(
                f"the module and qparams are of different networks ('{site.path}' {fault}); pass the module that was "
                f"calibrated."
            )
        grids = [grid_of(site, name, x) for name, x in zip(site.inputs, inputs, strict=True)]
        return call_on_integers(module, inputs, grids, site.act, site.site.dtype)

    return handler


def _on_parts(site: SitePlan, kernel: Parts, module: nn.Module, x: jax.Array, grid_of: GridOf) -> jax.Array:
    kind = kind_of(module)
    assert kind is not None and site.act is not None
    if reason := unsplittable(module, x.ndim):
        raise InputError(f"the kernel of '{site.path}' can't be cut into parts: {reason}; plan it as one kernel.")
    (x,) = kind.prepare(module, x)
    grids = [grid_of(site, name, x) for name in site.inputs]
    dtype = getattr(module, "dtype", None) or jnp.result_type(x, jnp.dtype(site.site.dtype))
    return call_on_parts(module, x, kernel, grids, site.act, dtype)


def call_on_integers(
    module: nn.Module, inputs: Sequence[jax.Array], grids: Sequence[QParams], scheme: Scheme, dtype: str
) -> jax.Array:
    """The call of one site, bound and with a `QTensor` for its kernel, on integers.

    Sites that share an array and its grid quantize it each, in the same words, and XLA does it once.

    Args:
        module: `Dense`, `DenseGeneral`, `Conv` or `Einsum`.
        inputs: Float arrays: one, or both sides of a product.
        grids: One for each input, a scalar each or broadcastable with size 1 along contracted axes.
        scheme: Scheme of the inputs.
        dtype: Dtype of the float kernel, which takes part in flax's type promotion.
    """
    kind = kind_of(module)
    assert kind is not None
    prepared = zip(kind.prepare(module, *inputs), grids, strict=True)
    quantized = [quantize_tensor(x, grid, scheme) for x, grid in prepared]
    promoted = inputs if len(inputs) > 1 else (inputs[0], jnp.dtype(dtype))
    # What the float module would return: flax promotes inputs, kernel and bias.
    return call_on_codes(module, quantized, jnp.result_type(*promoted))


def call_on_codes(module: nn.Module, inputs: Sequence[QTensor], dtype: jax.typing.DTypeLike) -> jax.Array:
    """The call of one site whose inputs are on their grids, and padded where the module doesn't pad with zeros.

    Args:
        module: Bound, with a `QTensor` for its kernel, as `call_on_integers` takes it.
        inputs: One, or both sides of a product.
        dtype: Dtype of the result, where the module has none of its own.
    """
    kind = kind_of(module)
    assert kind is not None
    is_product = kind.name == "product"
    rhs = inputs[1] if is_product else module.get_variable("params", "kernel")
    return kind.integer(module, inputs[0], rhs, (None if is_product else getattr(module, "dtype", None)) or dtype)
