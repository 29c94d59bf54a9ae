import jax.numpy as jnp
import numpy as np

from jaxdq.grid import Scheme, fake_quantize
from jaxdq.observers import minmax


def test_golden_range():
    o = minmax()
    state = o.update(o.update(o.init(), jnp.array([[-6.0, 1.0]])), jnp.array([9.0]))
    assert (float(state.low), float(state.high)) == (-6, 9)
    asymmetric = o.qparams(state, Scheme(4, symmetric=False))
    assert (float(asymmetric.scale), int(asymmetric.zero_point)) == (1.0, -2)
    np.testing.assert_allclose(o.qparams(state, Scheme(4)).scale, 9 / 7, rtol=1e-6)


def test_golden_range_holds_zero():
    o = minmax()
    asymmetric = o.qparams(o.update(o.init(), jnp.array([5.0, 15.0])), Scheme(4, symmetric=False))
    assert (float(asymmetric.scale), int(asymmetric.zero_point)) == (1.0, -8)


def test_nothing_clips():
    o, x, scheme = minmax(), jnp.linspace(-3.0, 2.0, 501), Scheme(8)
    qparams = o.qparams(o.update(o.init(), x), scheme)
    assert jnp.abs(fake_quantize(x, qparams, scheme) - x).max() <= qparams.scale / 2 + 1e-6
