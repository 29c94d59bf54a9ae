"""What attention costs on a TPU in several forms: a block of 512 queries, 1,024 tokens, one row of the batch.

    python scripts/bench_attention.py --chips v5e v6e

Prints one JSON line: head dimension -> form -> thousands of cycles of the compiler's simulated schedule, and of those
the ones that no schedule was simulated for. Nothing runs on a TPU.
"""

import argparse
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdq.cost import CHIPS, compile_for, export_framed
from jaxdq.linen import DotProductAttention


def main(argv: list[str] | None = None) -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=["v5e"])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[40, 64, 80, 160])
    args = parser.parse_args(argv)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for chip in args.chips:
        for width in args.head_dims:
            q, k = (jax.ShapeDtypeStruct((1, length, 8, width), jnp.bfloat16) for length in (512, 1024))
            programs = [export_framed(lambda inputs, _, form=form: form(*inputs), (q, k, k)) for form in FORMS.values()]
            answers = [answer.program for answer in compile_for(programs, CHIPS[chip])]
            found.setdefault(chip, {})[str(width)] = {
                name: [round(sum(program.cycles.values()) / 1e3, 1), round(program.guessed / 1e3, 1)]
                for name, program in zip(FORMS, answers, strict=True)
            }
    print(json.dumps(found))


def softmax_between(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scores, their softmax in float32, values: as it is written everywhere."""
    scores = (jnp.einsum(SCORES, q, k) * q.shape[-1] ** -0.5).astype(jnp.float32)
    return jnp.einsum(VALUES, jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def divided_last(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Exponentials, their sum, values, and one division at the end."""
    scores = jnp.einsum(SCORES, q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    out = jnp.einsum(VALUES, powers.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / jnp.swapaxes(jnp.sum(powers, axis=-1), 1, 2)[..., None]).astype(v.dtype)


SCORES, VALUES = "blhd,bmhd->bhlm", "bhlm,bmhd->blhd"
FORMS: dict[str, Callable] = {
    "softmax between": softmax_between,
    "jax.nn.dot_product_attention": jax.nn.dot_product_attention,
    "divided last": divided_last,
    "ours: the sum a column of ones": lambda q, k, v: DotProductAttention().apply({}, q, k, v),
}

if __name__ == "__main__":
    main()
