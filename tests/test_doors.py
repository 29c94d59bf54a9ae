"""The library's doors: arguments of the wrong kind get one sentence, whatever they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Tiny, tiny_quantized, toy_denoiser

import jaxdq
from jaxdq import InputError, recipes

KEY, SAMPLER = jax.random.key(0), jaxdq.ddim(2)
WRONG = {
    "None": None,
    "number": 5,
    "fraction": 1.5,
    "nan": float("nan"),
    "text": "x",
    "bytes": b"x",
    "list": [],
    "dict": {},
    "object": object(),
    "class": int,
    "array": np.zeros(3),
    "tracer's kin": jnp.ones((2, 2)),
    "keys": jax.random.split(KEY, 3),
    "truth": True,
    "function": lambda: 0,
}


@functools.cache
def tiny():
    return tiny_quantized()


def drawn(params):
    return jaxdq.sample(tiny()[0], params, sampler=SAMPLER, num_images=2, key=KEY)


def evaluated(qparams=None, **settings):
    denoiser, own = tiny()
    asked = {"sampler": SAMPLER, "key": KEY, "num_images": 2, **settings}
    return jaxdq.evaluate(denoiser, own if qparams is None else qparams, **asked)


def network(**fields):
    denoiser = toy_denoiser(Tiny())
    own = {"module": denoiser.module, "params": denoiser.params, "schedule": denoiser.schedule, "shape": SHAPE}
    return jaxdq.Denoiser(**{**own, **fields})


# door -> (call, names of what it takes)
DOORS = {
    "calibrate a denoiser": (lambda x: jaxdq.calibrate(x, recipes.minmax(), sampler=SAMPLER, key=KEY), ()),
    "calibrate by a recipe": (lambda x: jaxdq.calibrate(tiny()[0], x, sampler=SAMPLER, key=KEY), ()),
    "calibrate with a sampler": (lambda x: jaxdq.calibrate(tiny()[0], recipes.minmax(), sampler=x, key=KEY), ()),
    "calibrate with a key": (lambda x: jaxdq.calibrate(tiny()[0], recipes.minmax(), sampler=SAMPLER, key=x), ()),
    "quantize params": (lambda x: jaxdq.quantize(x, None), ()),
    "quantize by a calibration": (lambda x: jaxdq.quantize(tiny()[0].params, x), ()),
    "apply a module": (lambda x: jaxdq.apply(x, tiny()[1], np.zeros((2, *SHAPE), np.float32), 3), ()),
    "apply params": (lambda x: jaxdq.apply(Tiny(), x, np.zeros((2, *SHAPE), np.float32), 3), ("dict",)),
    "apply to an image": (lambda x: jaxdq.apply(Tiny(), tiny()[1], x, 3), ("array", "tracer's kin", "keys")),
    "sample from params": (drawn, ()),
    "evaluate params": (lambda x: evaluated({} if x is None else x), ()),
    "evaluate so many": (lambda x: evaluated(num_images=x), ("number",)),
    "evaluate decoded": (lambda x: evaluated(decode=x), ("None", "function")),
    "save a network": (lambda x: jaxdq.save("nowhere/q", x), ()),
    "a denoiser's module": (lambda x: network(module=x), ()),
    "a denoiser's schedule": (lambda x: network(schedule=x), ()),
    "a denoiser's shape": (lambda x: network(shape=x), ()),
    "guide a denoiser": (lambda x: jaxdq.guided(x, ()), ()),
    "guide away from": (lambda x: jaxdq.guided(toy_denoiser(Tiny(), (np.ones((2, 4), np.float32),)), x), ()),
    "steps of ddim": (jaxdq.ddim, ("number",)),
    "bits of a scheme": (jaxdq.Scheme, ("number",)),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_of_the_wrong_kind_is_told(door):
    call, takes = DOORS[door]
    for name, value in WRONG.items():
        if name in takes:
            continue
        with pytest.raises(InputError) as told:
            call(value)
        said = str(told.value)
        assert len(said) < 600 and "\n" not in said and any(word in said for word in ("pass", "give", "needs")), said


@pytest.mark.parametrize("setting", ["ranges", "weights", "learning", "split"])
@pytest.mark.parametrize("name", ["uniform_groups", "adpdm", "ptqd", "tac", "pcr", "fidelity", "time_tables"])
def test_settings_of_recipes_too(name, setting):
    takes = {"learning": ("None",), "split": ("truth",), "weights": ("None",)}.get(setting, ())
    if (name, setting) == ("uniform_groups", "weights"):
        takes = ()
    for word, value in WRONG.items():
        if word not in takes:
            with pytest.raises(InputError):
                getattr(recipes, name)(8, 8, **{setting: value})
