"""The attention of several heads as a module: in blocks of queries, or by two products that can be sites."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdq.linen._einsum import Einsum

# From so many queries on they are taken in blocks. Below, all scores fit into a TPU's fast memory anyway.
MANY_QUERIES = 1024
# The TPU compiler's schedule is the same within 2% for 256 and 512.
ATTENTION_BLOCK = 512


class DotProductAttention(nn.Module):
    """``softmax(q k^T / sqrt(D)) v`` in each head, without parameters.

    In float, and from `MANY_QUERIES` queries on, the rows of the batch and blocks of their queries go one after the
    other, so that the L x M scores never stand in memory as a whole, forward or backward: the same numbers up to the
    order of float32 sums. A plan that puts one of the two products on integers has them both made whole, as the
    submodules ``scores`` and ``values``; that is an option for accuracy studies and does not pay: a TPU spends the time
    on the scores between the products.
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
        count = -(-length // ATTENTION_BLOCK)
        q = jnp.pad(q, ((0, 0), (0, count * ATTENTION_BLOCK - length), (0, 0), (0, 0)))
        blocks = q.reshape(q.shape[0], count, ATTENTION_BLOCK, *q.shape[2:])

        def of_row(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            blocks, k, v = row
            # The gradient makes the scores of a block again: kept, they would be as large as if never split.
            return lax.map(jax.checkpoint(lambda block: _attend(block[None], k[None], v[None])[0]), blocks)

        return lax.map(of_row, (blocks, k, v)).reshape(q.shape)[:, :length]

    @nn.compact
    def products(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attend by the submodules ``scores`` and ``values``; arguments and result as of the call."""
        weights = _weights(Einsum(SCORES, name="scores")(q, k), v, q.shape[-1])
        return Einsum(VALUES, name="values")(weights, v)


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
