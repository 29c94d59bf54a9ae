"""A contraction of two arrays as a named module."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Einsum(nn.Module):
    """``jnp.einsum(spec, lhs, rhs)``, without parameters.

    Attention multiplies two activations. As a module the product has a path, such as ``mid_block/attentions_0/scores``,
    and the quantizer, which sees modules, can make it integer or report it as float.

    Attributes:
        spec: The contraction in einsum's notation, for example ``"blhd,bmhd->bhlm"``.

    Example:
        >>> Einsum("ij,jk->ik").apply({}, jnp.eye(2), jnp.ones((2, 3))).shape
        (2, 3)
    """

    spec: str

    @nn.compact
    def __call__(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Contract ``lhs`` with ``rhs`` as ``spec`` says.

        Args:
            lhs: float[...], the axes left of the comma.
            rhs: float[...], the axes right of the comma.

        Returns:
            float[...], the axes right of the arrow.
        """
        return jnp.einsum(self.spec, lhs, rhs)
