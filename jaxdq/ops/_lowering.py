"""Which form an integer convolution takes: one table, read from the top; the first row that applies is taken.

TPU rows come from the compiler's simulated schedule for v5e (no chip was at hand), kept in forms_tpu_v5e.json beside
this file; that of the CPU was measured on two cores (forms_cpu.json). `scripts/bench_forms.py` makes both. CUDA's and
ROCm's come from what their libraries offer.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxdq.ops._forms import FORMS, LANES, Pads


class Shapes(NamedTuple):
    """What a choice depends on.

    Attributes:
        batch: B.
        width: The smallest space axis of the input.
        channels: C.
        taps: Number of taps of the window.
        strides: The largest.
    """

    batch: int
    width: int
    channels: int
    taps: int
    strides: int


class FormRule(NamedTuple):
    """One line of the table.

    Attributes:
        platform: JAX's name of it: cpu, tpu, cuda, rocm.
        applies: Whether to these shapes.
        form: One of `FORMS`.
        why: What was measured.
    """

    platform: str
    applies: Callable[[Shapes], bool]
    form: str
    why: str


TABLE = (
    FormRule("tpu", lambda s: s.taps == 1, "im2col", "a dot; the same program as the 1x1 convolution"),
    FormRule("tpu", lambda s: s.batch < 8 and s.width <= 8, "im2col", "2x8x1280: 18 kcyc, native 234, bfloat16 53"),
    # Shifted dots have 27, but leave sums of int32 as large as the output in memory: seven at 8x64x320.
    FormRule("tpu", lambda s: s.channels % LANES != 0, "padded", "8x16x320: 28 kcyc, native 47"),
    FormRule("tpu", lambda s: s.batch < 8 and s.width <= 16, "im2col", "2x16x640: 21 kcyc, native 26"),
    # The dot of the patches takes 0.2 s of CPU to compile, native 0.04 (`digits`: 13.1 s, native 4.9): it has to gain
    # milliseconds a call. Narrower layers run as fast natively; wider images and larger windows gain nothing.
    FormRule(
        "cpu",
        lambda s: s.channels >= 640 and s.width <= 16 and s.taps <= 9 and s.strides == 1,
        "im2col",
        "2x8x1280: 36 ms, native 47; 2x16x640: 32, native 39",
    ),
    FormRule("cuda", lambda s: True, "im2col", "cuDNN knows few patterns of s8 convolutions; cuBLAS has s8 dots"),
    FormRule("rocm", lambda s: True, "im2col", "as cuda"),
)
OTHERWISE = "native"


def form_of(platform: str, shapes: Shapes) -> str:
    """The name of the form that the table gives."""
    return next((row.form for row in TABLE if row.platform == platform and row.applies(shapes)), OTHERWISE)


_AS_IF: contextvars.ContextVar[tuple[int, ...] | None] = contextvars.ContextVar("as_if", default=None)


@contextlib.contextmanager
def lowered_as(shape: Sequence[int]) -> Iterator[None]:
    """Within it, integer convolutions take the form that another input would: to price part of one.

    Args:
        shape: [B, *space, C], of that input.

    Returns:
        A context manager.
    """
    token = _AS_IF.set(tuple(shape))
    try:
        yield
    finally:
        _AS_IF.reset(token)


def convolve_codes(
    lhs: jax.Array, rhs: jax.Array, window: Any, pads: Pads, space: Sequence[int] | None = None
) -> jax.Array:
    """int8 x int8 -> int32 in the form that the platform likes best for these shapes.

    Chosen when the program is lowered, so that one traced function serves every platform, also one compiled for from
    afar; the program of one platform holds one form and no conditional.

    Args:
        lhs: int8[B, *space, C], padded already or to be padded by `pads`.
        rhs: int8[*window, C / groups, N].
        window: Strides, dilation, groups.
        pads: (before, after) for each space axis.
        space: Space axes of the input before padding; None is that of lhs.
    """
    batch, *sides, channels = _AS_IF.get() or (lhs.shape[0], *(space or lhs.shape[1:-1]), lhs.shape[-1])
    shapes = Shapes(batch, min(sides), channels, math.prod(rhs.shape[:-2]), max(window.strides))
    chosen: dict[str, str] = {platform: form_of(platform, shapes) for platform in ("cpu", "tpu", "cuda", "rocm")}

    def call(form: str) -> Callable[..., jax.Array]:
        return lambda lhs, rhs: FORMS[form](lhs, rhs, window, pads)

    if len(set(chosen.values())) == 1:
        return call(chosen["cpu"])(lhs, rhs)
    calls = {platform: call(form) for platform, form in chosen.items()}
    return lax.platform_dependent(lhs, rhs, default=call(OTHERWISE), **calls)
