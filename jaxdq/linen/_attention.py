"""The attention of several heads as a module: in blocks of queries, or by two products that can be sites."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdq.linen._einsum import Einsum

# From so many queries on they are taken in blocks. Below, all scores fit into a TPU's fast memory anyway.
MANY_QUERIES = 1024
# Queries in a block, and how many scores a block may have: 2**24 in float32 are half of a v5e's fast memory.
FEWEST, MOST, SCORES_AT_A_TIME = 64, 512, 2**24


def queries_at_a_time(batch: int, tokens: int) -> int:
    """Queries of a block: a power of two from `FEWEST` to `MOST`, the fewer the more rows and tokens there are.

    Example:
        >>> queries_at_a_time(8, 4096), queries_at_a_time(64, 4096)
        (512, 64)
    """
    fitting = max(1, SCORES_AT_A_TIME // max(1, batch * tokens))
    return min(MOST, max(FEWEST, 1 << (fitting.bit_length() - 1)))


class DotProductAttention(nn.Module):
    """``softmax(q k^T / sqrt(D)) v`` in each head, without parameters.

    In float, and from `MANY_QUERIES` queries on, the heads and blocks of their queries go one after the other, so that
    the L x M scores never stand in memory as a whole, forward or backward: the same numbers up to the order of float32
    sums. (Heads that are split over devices are gathered for it; split the batch.) A plan that puts one of the two
    products on integers has them both made whole, as the submodules ``scores`` and ``values``; that is an option for
    accuracy studies and does not pay: a TPU spends the time on the scores between the products.
    """

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attend in float.

        Args:
            q: float[B, L, heads, D].
            k: float[B, M, heads, D].
            v: float[B, M, heads, D].

        Returns:
            float[B, L, heads, D].
        """
        length = q.shape[1]
        if length < MANY_QUERIES:
            return _attend(q, k, v)
        size = queries_at_a_time(q.shape[0], k.shape[1])
        padded = jnp.pad(q, ((0, 0), (0, -length % size), (0, 0), (0, 0)))

        def of_head(head: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            q, k, v = (x[:, :, None] for x in head)
            blocks = jnp.moveaxis(q.reshape(q.shape[0], q.shape[1] // size, size, *q.shape[2:]), 1, 0)
            # The gradient makes the scores of a block again: kept, they would be as large as if never split.
            out = lax.map(jax.checkpoint(lambda block: _attend(block, k, v)), blocks)
            return jnp.moveaxis(out, 0, 1).reshape(*head[0].shape[:2], v.shape[-1])

        # Head by head, so that keys and values stay in fast memory too, while the blocks of queries pass; the batch
        # stays whole, so that devices that share it share the work.
        out = lax.map(of_head, tuple(jnp.moveaxis(x, 2, 0) for x in (padded, k, v)))
        return jnp.moveaxis(out, 0, 2)[:, :length]

    @nn.compact
    def products(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attend by the submodules ``scores`` and ``values``; arguments and result as of the call."""
        weights = _weights(Einsum(SCORES, name="scores")(q, k), v, q.shape[-1])
        return Einsum(VALUES, name="values")(weights, v)


# What the attention of diffusers' Flax classes, and of those that were made after them, is known by.
_ARGUMENTS = ["self", "hidden_states", "context", "deterministic"]
_UNUSED = "cross_attention_kwargs"  # MaxDiffusion's class takes them too, and passes them on to nothing
_CLASS, _PARTS = "FlaxAttention", ("query", "key", "value", "proj_attn", "heads", "dim_head")


def attends_as_in_diffusers(module: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """Whether a module is the attention of diffusers' Flax classes, called with so many queries that blocks pay.

    So is MaxDiffusion's, which was made after them, where its kernel keeps the scores: "dot_product", and "flash" for
    fewer tokens than its least. One with other arguments (a mask, say), other layers, a scale of its own or dropout is
    not, nor is a class that inherits its call and changes it.

    Args:
        module: Bound, of any class.
        *args: What it is called with by position.
        **kwargs: What it is called with by name.
    """
    if type(module).__name__ != _CLASS or not all(hasattr(module, part) for part in _PARTS):
        return False
    try:
        given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    except TypeError:  # the call itself reports what is wrong with it
        return False
    x, context = given.get("hidden_states"), given.get("context")
    if (
        not isinstance(x, jax.Array)
        or x.ndim != 3
        or x.shape[1] < MANY_QUERIES
        or not _computes_as_in_diffusers(module)
    ):
        return False
    unused, kernel = given.get(_UNUSED), getattr(module, "attention_kernel", "dot_product")
    shortest = min(x.shape[1], x.shape[1] if context is None else context.shape[1])
    keeps_scores = kernel == "flash" and shortest < getattr(module, "flash_min_seq_length", 0)
    return (unused is None or (isinstance(unused, dict) and not unused)) and (kernel == "dot_product" or keeps_scores)


def _computes_as_in_diffusers(module: Any) -> bool:
    """Whether the class has the arguments, the layers and the scale, from one class that nothing overrides."""
    takes = list(inspect.signature(type(module).__call__).parameters)
    if takes not in (_ARGUMENTS, [*_ARGUMENTS, _UNUSED]):
        return False
    bases = [base for base in type(module).__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
    overridden = any(sum(name in base.__dict__ for base in bases) > 1 for name in ("__call__", "setup"))
    layers = {getattr(module, part).name for part in _PARTS[:4]}
    scale = module.dim_head**-0.5
    usual = getattr(module, "scale", scale) == scale and not getattr(module, "dropout", 0.0)
    return usual and not overridden and set(module.variables.get("params", ())) <= layers


def attend_as_in_diffusers(
    module: Any,
    hidden_states: jax.Array,
    context: jax.Array | None = None,
    deterministic: bool = True,
    cross_attention_kwargs: None = None,
) -> jax.Array:
    """What such a module computes, by its own projections, with `DotProductAttention` in place of its products.

    Logical constraints between them, which say how arrays lie on a mesh, fall away: the partitioner decides.

    Args:
        module: Bound.
        hidden_states: float[B, L, C].
        context: float[B, M, K]; None is hidden_states.
        deterministic: Not used; there is no dropout.
        cross_attention_kwargs: Not used.

    Returns:
        float[B, L, C].
    """
    context = hidden_states if context is None else context
    q, k, v = (
        part.reshape(*part.shape[:2], module.heads, module.dim_head)
        for part in (module.query(hidden_states), module.key(context), module.value(context))
    )
    mixed = DotProductAttention(parent=None).apply({}, q, k, v)
    return module.proj_attn(jnp.asarray(mixed).reshape(*q.shape[:2], -1))


SCORES, VALUES = "blhd,bmhd->bhlm", "bhlm,bmhd->blhd"


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attend by exponentials that are divided by their sum last, where there are D numbers and not M.

    The sum is a column of ones beside v, so that a matrix unit adds it up on the way: on a TPU this takes half the time
    of a softmax between two products (`scripts/bench_attention.py`). Exponentials are rounded to v's dtype, and their
    sum is that of the rounded ones, in float32.
    """
    scores = jnp.einsum(SCORES, q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    highest = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))  # any number would do, but for overflow
    powers = jnp.exp(scores - highest).astype(v.dtype)
    counted = jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)
    sums = jnp.einsum(VALUES, powers, counted, preferred_element_type=jnp.float32)
    return (sums[..., :-1] / sums[..., -1:]).astype(v.dtype)


def _weights(scores: jax.Array, v: jax.Array, head_dim: int) -> jax.Array:
    # The exponentials are summed over M tokens: bfloat16 would keep eight bits of that sum.
    logits = (scores * head_dim**-0.5).astype(jnp.float32)
    return jax.nn.softmax(logits, axis=-1).astype(v.dtype)
