"""Public Flax modules in other forms than a denoiser's run through the one wrapper."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdq
from jaxdq import InputError


@flax.struct.dataclass
class Output:
    sample: Any


class ChannelsFirst(nn.Module):
    """As MaxDiffusion's UNet: NCHW, t as a vector, an output struct."""

    @nn.compact
    def __call__(self, sample, timesteps):
        assert timesteps.shape == (len(sample),)
        x = jnp.transpose(sample, (0, 2, 3, 1))
        h = nn.Conv(8, (3, 3))(x) + nn.Dense(8)(jnp.sin(timesteps[:, None] / 100.0))[:, None, None]
        return Output(jnp.transpose(nn.Conv(x.shape[-1], (3, 3))(nn.silu(h)), (0, 3, 1, 2)))


class Column(nn.Module):
    """t as float[B, 1], and a tuple."""

    @nn.compact
    def __call__(self, x, t):
        assert t.ndim == 2 and jnp.issubdtype(t.dtype, jnp.floating)
        h = nn.Dense(8)(x) + nn.Dense(8)(t / 1000)[:, None, None]
        return nn.Dense(x.shape[-1])(nn.silu(h)), None


class Joined(nn.Module):
    """Another image beside the noisy one, and a variance behind the prediction, in a dict."""

    @nn.compact
    def __call__(self, x, t):
        assert x.shape[-1] == 3
        return {"sample": nn.Dense(2)(nn.silu(nn.Dense(8)(x) + t / 1000))}


class Tokens(nn.Module):
    """No image at all: [B, L, C]."""

    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(x.shape[-1])(nn.silu(nn.Dense(8)(x) + t / 1000))


CASES = {
    "channels first": (jaxdq.wrap(ChannelsFirst(), channels_first=True, time="vector"), (4, 4, 1), ()),
    "column": (jaxdq.wrap(Column(), time="column", time_dtype="float32"), (4, 4, 1), ()),
    "joined": (jaxdq.wrap(Joined(), joined=1, channels=1), (4, 4, 1), (np.ones((2, 4, 4, 2), np.float32),)),
    "tokens": (Tokens(), (6, 3), ()),
    "video": (Tokens(), (2, 4, 4, 3), ()),
}


@pytest.mark.parametrize(("module", "shape", "conditions"), CASES.values(), ids=CASES)
def test_other_forms_are_calibrated_quantized_drawn_and_restored(module, shape, conditions, tmp_path):
    x = jnp.zeros((2, *shape))
    params = module.init(jax.random.key(0), x, 0, *conditions)["params"]
    denoiser = jaxdq.Denoiser(module, params, jaxdq.linear_schedule(), shape, conditions)
    recipe = jaxdq.recipes.minmax(weight_bits=8, act_bits=8)
    calib = jaxdq.calibrate(denoiser, recipe, sampler=jaxdq.ddim(3), key=jax.random.key(0), num_images=4)
    qparams = jaxdq.quantize(denoiser.params, calib)
    settings = {"sampler": jaxdq.ddim(3), "key": jax.random.key(1), "num_images": 4}
    drawn = jaxdq.sample(denoiser, qparams, **settings)
    assert drawn.shape == (4, *shape)
    assert np.median(np.abs(drawn - jaxdq.sample(denoiser, denoiser.params, **settings))) < 0.05
    jaxdq.save(tmp_path / "saved", qparams)
    np.testing.assert_array_equal(jaxdq.sample(denoiser, jaxdq.restore(tmp_path / "saved"), **settings), drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": nn.Dense}, "module is .*pass a flax linen module"),
        ({"time": "row"}, "time is 'row'; pass one of scalar, vector, column"),
        ({"time_dtype": "real"}, "time_dtype is 'real'"),
        ({"channels_first": "yes"}, "channels_first is 'yes'"),
        ({"joined": -1}, "joined is -1"),
        ({"channels": 0}, "channels is 0"),
    ],
)
def test_bad_arguments_are_told(arguments, message):
    with pytest.raises(InputError, match=message):
        jaxdq.wrap(**({"module": Tokens()} | arguments))


def test_a_result_that_holds_no_array_is_told():
    class Odd:
        def apply(self, variables, x, t):
            return {"noise": x}

    with pytest.raises(InputError, match="let it return an array, a struct or dict with the array as sample"):
        jaxdq.wrap(Odd()).apply({}, jnp.zeros((1, 2, 2, 1)), 0)
