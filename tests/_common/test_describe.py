import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.describe import describe
from jaxdq.grid import Scheme
from jaxdq.observers import ema, minmax, mse, mse_weights, percentile
from jaxdq.recipes import default_rules


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    inner: tuple = (1, 2)


class Pair(NamedTuple):
    one: int
    two: float


class Plain:
    def __init__(self, size):
        self.size = size


def times(factor, also=None):
    def run(x):
        return factor * x if also is None else also(x)

    return run


def recursive(depth):
    def run(x):
        return run(x) if x else depth

    return run


VALUES = {
    "number": (np.float32(0.5), 0.5),
    "none": (None, None),
    "dataclass": (Settings(), {"rate": 0.5, "inner": [1, 2]}),
    "named tuple": (Pair(1, 2.0), {"one": 1, "two": 2.0}),
    "mapping": ({1: {"a"}}, {"1": ["a"]}),
    "object": (Plain(3), {"type": "Plain", "size": 3}),
    "function": (times, "times"),
    "closure": (times(3), "times(also=None, factor=3)"),
    "closure over a closure": (times(3, times(2)), "times(also=times(also=None, factor=2), factor=3)"),
    "jitted": (jax.jit(times(3)), "times(also=None, factor=3)"),
    "calls itself": (recursive(2), "recursive(depth=2, run=...)"),
    "observer": (mse(2.0), "mse(num_candidates=80, p=2.0)"),
    "observer without settings": (minmax(), "minmax()"),
    "observer of weights": (mse_weights(), "mse_weights(num_candidates=80, p=2.4)"),
    "scheme": (Scheme(4), {"bits": 4, "symmetric": True, "channel_axis": None}),
    "type": (Scheme, "Scheme"),
    "partial": (functools.partial(times, factor=2), {"partial": "times", "factor": 2, "args": []}),
}


@pytest.mark.parametrize("name", VALUES)
def test_golden_descriptions_are_plain(name):
    value, expected = VALUES[name]
    found = describe(value)
    assert json.loads(json.dumps(found)) == found
    assert found == expected


def test_what_does_the_same_is_described_alike_and_what_does_not_is_not():
    many = [
        *(ema(rate) for rate in (0.9, 0.99)),
        *(percentile(p) for p in (99.0, 99.9)),
        *(mse(p) for p in (2.0, 2.4)),
        *(default_rules(8, bits) for bits in (4, 8)),
        *(times(jnp.full(2, value)) for value in (1.0, 2.0)),
        minmax(),
    ]
    described = [json.dumps(describe(value)) for value in many]
    assert len(set(described)) == len(many)
    assert json.dumps(describe(times(np.full(2, 1.0, np.float32)))) == described[8]
    assert json.dumps(describe(mse(2.0))) == described[4]
