"""diffusers' Flax pipelines: calibrated with their own text encoders, and run on integers in place.

Nothing here imports diffusers: a pipeline is an object with `unet`, `scheduler`, `tokenizer` and `text_encoder`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.diffusion import Denoiser, default_sampler, guided, schedule_from_config
from jaxdq.linen import Calibration, QuantizedParams, apply, check_belongs, quantize
from jaxdq.models._foreign import INSTALL
from jaxdq.models.text import TextEncoder, conditions_of


# Both wrappers are compared by identity: a UNet read from a config.json has lists in its fields, so it has no hash.
@dataclass(frozen=True, eq=False)
class ChannelsLastUNet:
    """A UNet of diffusers' Flax classes, called as jaxdq calls a network: arrays in, an array out, channels last.

    Attributes:
        unet: `FlaxUNet2DConditionModel`, or a module that is called like it.
    """

    unet: Any

    def apply(
        self,
        variables: Any,
        x: jax.Array,
        t: jax.Array,
        encoder_hidden_states: jax.Array,
        text_embeds: jax.Array | None = None,
        time_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Predict what the network was trained to predict in x: float[B, H, W, C] -> float[B, H, W, C]."""
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        # One time for each row, as the pipelines have it: then the time embedding has the batch as its leading axis too
        x, t = jnp.transpose(x, (0, 3, 1, 2)), jnp.broadcast_to(t, x.shape[:1])
        out = self.unet.apply(variables, x, t, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]
        return jnp.transpose(out, (0, 2, 3, 1))


@dataclass(frozen=True, eq=False)
class QuantizedUNet:
    """A linen module that runs on integers wherever its params are quantized; everything else is the module's own.

    Attributes:
        unet: The module.
    """

    unet: Any

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """`unet.apply`, with `QuantizedParams` as variables["params"]."""
        return apply(self.unet, variables["params"], *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "unet":  # not set yet: the object is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.unet, name)


def denoiser_from_pipeline(
    pipeline: Any, params: Mapping[str, Any], prompts: Sequence[str], *, guidance_scale: float = 7.5
) -> Denoiser:
    """What `jaxdq.calibrate` learns from: the pipeline's UNet with its own prompts, guided as the pipeline guides it.

    Args:
        pipeline: A `FlaxStableDiffusionPipeline` or `FlaxStableDiffusionXLPipeline`.
        params: Its params, not replicated.
        prompts: P >= 1 texts; image i takes prompt i % P.
        guidance_scale: Scale of classifier-free guidance.

    Returns:
        Denoiser: of latents, float[H, W, C] with the UNet's sample_size as H and W.

    Raises:
        InputError: What `from_pretrained` returned is no pipeline, its params are replicated or quantized already, no
            prompts, or a scheduler that jaxdq does not know.

    Example:
        `calib = jaxdq.calibrate(jaxdq.denoiser_from_pipeline(pipeline, params, prompts), recipe, ...)`
    """
    _check_pipeline(pipeline, params)
    names = [name for name in ("", "_2") if getattr(pipeline, f"tokenizer{name}", None) is not None]
    encoder = TextEncoder(
        tuple(getattr(pipeline, f"tokenizer{name}") for name in names),
        tuple(getattr(pipeline, f"text_encoder{name}") for name in names),
        tuple(params[f"text_encoder{name}"] for name in names),
    )
    unet, side = pipeline.unet, pipeline.unet.config.sample_size
    conditional, unconditional = conditions_of(encoder, prompts, side * pipeline.vae_scale_factor)
    scheduler = {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}
    schedule, sampler = schedule_from_config(scheduler), default_sampler(scheduler)
    shape = (side, side, unet.config.in_channels)
    module = ChannelsLastUNet(unet)
    name = type(pipeline).__name__
    denoiser = Denoiser(module, params["unet"], schedule, shape, conditional, name, sampler=sampler)
    return guided(denoiser, unconditional, guidance_scale=guidance_scale)


def quantize_pipeline(
    pipeline: Any, params: Mapping[str, Any], calib: Calibration | QuantizedParams
) -> tuple[Any, dict[str, Any]]:
    """A pipeline that is called as before, and whose UNet runs on integers, jitted and sharded or not.

    Args:
        pipeline: A `FlaxStableDiffusionPipeline` or `FlaxStableDiffusionXLPipeline`; it stays as it is.
        params: Its params, not replicated.
        calib: What was learned of its UNet, or the `QuantizedParams` that `jaxdq.restore` returned.

    Returns:
        (pipeline, params): a copy with another `unet`, and params with `QuantizedParams` as "unet".

    Raises:
        InputError: What `from_pretrained` returned is no pipeline, its params are replicated or quantized already, or
            the calibration is another network's.

    The products of diffusers' Flax attention are calls of `jnp.einsum` and no modules: they stay in float, as the plan
    says in its last line and as `integer_mac_fraction` counts them.

    Example:
        `pipeline, params = jaxdq.quantize_pipeline(pipeline, params, calib)`
    """
    _check_pipeline(pipeline, params)
    is_calibration = isinstance(calib, Calibration)
    if not is_calibration and not isinstance(calib, QuantizedParams):
        raise InputError(f"calib is a {type(calib).__name__}; pass what jaxdq.calibrate or jaxdq.restore returned.")
    if not is_calibration:
        remedy = "pass what was quantized from this pipeline's UNet"
        check_belongs(params["unet"], calib.plan, "params['unet']", remedy)
    quantized = jax.jit(quantize)(params["unet"], calib) if is_calibration else calib
    on_integers = copy.copy(pipeline)
    on_integers.unet = QuantizedUNet(pipeline.unet)
    return on_integers, {**params, "unet": quantized}


def _check_pipeline(pipeline: Any, params: Any) -> None:
    if pipeline is None:
        raise InputError(
            f"the pipeline is None, which diffusers' from_pretrained returns beside a transformers without Flax "
            f"classes; {INSTALL}."
        )
    missing = [name for name in ("unet", "scheduler", "tokenizer", "text_encoder") if not hasattr(pipeline, name)]
    if missing:
        raise InputError(
            f"the pipeline is a {type(pipeline).__name__} without {', '.join(missing)}; pass a "
            "FlaxStableDiffusionPipeline or FlaxStableDiffusionXLPipeline."
        )
    if not isinstance(params, Mapping) or "unet" not in params:
        raise InputError(
            f"params is a {type(params).__name__} without 'unet'; pass the params that from_pretrained returned with "
            f"the pipeline."
        )
    if isinstance(params["unet"], QuantizedParams):
        raise InputError("params['unet'] is quantized already; pass the float params that from_pretrained returned.")
