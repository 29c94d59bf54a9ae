"""diffusers' Flax pipelines, loaded from disk, calibrated, quantized in place and called as before."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_pipelines
from diffusers import FlaxStableDiffusionPipeline, FlaxStableDiffusionXLPipeline, FlaxUNet2DConditionModel
from flax.jax_utils import replicate
from flax.training.common_utils import shard
from readme import block

import jaxdq
from jaxdq import InputError
from jaxdq.calibration import plan_for, weight_grids
from jaxdq.linen import find_sites, kernel_at, layers_of_time, unfitted_acts
from jaxdq.observers import minmax_weights

PROMPTS = ["a cat", "a dog on a hill"]
STEPS = 2
CLASSES = {"v1": FlaxStableDiffusionPipeline, "xl": FlaxStableDiffusionXLPipeline}
SCRIPT = block("pipeline")
TWO_DEVICES = """
import sys

import jax, jax.numpy as jnp, numpy as np
from diffusers import FlaxStableDiffusionPipeline
from flax.jax_utils import replicate
from flax.training.common_utils import shard

import jaxdq

folder, checkpoint, latents, out, *prompts = sys.argv[1:]
assert jax.device_count() == 2
pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
pipeline, params = jaxdq.quantize_pipeline(pipeline, params, jaxdq.restore(checkpoint))
ids, keys = shard(pipeline.prepare_inputs(prompts)), jax.random.split(jax.random.key(0), 2)
latents = shard(np.load(latents))
np.save(out, pipeline(ids, replicate(params), keys, 2, latents=latents, jit=True).images)
"""


@pytest.fixture(scope="module", params=CLASSES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return small_pipelines.write_pipeline(tmp_path_factory.mktemp(family) / "model", xl=family == "xl")


@pytest.fixture(scope="module")
def loaded(folder, family):
    absent = {} if family == "xl" else {"safety_checker": None, "feature_extractor": None}
    return CLASSES[family].from_pretrained(folder, **absent)


@pytest.fixture(scope="module")
def quantized(loaded):
    """The pipeline after the script's three lines, with fewer groups, steps and images."""
    pipeline, params = loaded
    names = {"jax": jax, "jaxdq": jaxdq, "pipeline": pipeline, "params": params, "prompts": PROMPTS}
    small = SCRIPT.replace("uniform_groups()", "uniform_groups(num_groups=2, ranges='minmax')").replace(
        "50)", f"{STEPS}), num_images=2"
    )
    exec(compile(small, "script", "exec"), names)
    return names["pipeline"], names["params"]


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(5).standard_normal((2, 4, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def drawn(quantized, latents):
    """Images of the quantized pipeline, called without jit."""
    pipeline, params = quantized
    ids = pipeline.prepare_inputs(PROMPTS)
    # An array, since the pipelines make of a float one scale per prompt, which they can't multiply outside of jit.
    scale = jnp.array(7.5)
    return np.asarray(pipeline(ids, params, jax.random.key(0), STEPS, guidance_scale=scale, latents=latents).images)


def unet_output(pipeline, params, latents, conditions):
    """What the pipeline's loop asks of its unet: by name, and with a vector of times."""
    added = dict(zip(("text_embeds", "time_ids"), conditions[1:], strict=False)) or None
    inputs = jnp.asarray(latents), jnp.full(2, 501)

    @jax.jit
    def call(params):
        out = pipeline.unet.apply(
            {"params": params}, *inputs, encoder_hidden_states=conditions[0], added_cond_kwargs=added
        )
        return out.sample

    return np.asarray(call(params["unet"]), np.float64)


def sqnr_db(signal, other):
    return 10 * np.log10(np.sum(signal**2) / np.sum((signal - other) ** 2))


@pytest.mark.slow
def test_the_unet_runs_on_integers_and_stays_close_to_the_float_one(loaded, quantized, latents):
    pipeline, params = quantized
    assert type(pipeline) is type(loaded[0]) and pipeline is not loaded[0]
    assert isinstance(params["unet"], jaxdq.QuantizedParams)
    assert not isinstance(loaded[1]["unet"], jaxdq.QuantizedParams), "the float pipeline stays as it was"
    assert params["unet"].plan.integer_mac_fraction > 0.8
    assert pipeline.unet.config is loaded[0].unet.config and pipeline.unet.in_channels == 4
    conditions = jaxdq.denoiser_from_pipeline(*loaded, PROMPTS).conditions
    conditions = [jnp.asarray(rows) for rows in conditions[len(conditions) // 2 :]]
    of_float, of_integers = (unet_output(*pair, latents, conditions) for pair in (loaded, quantized))
    assert of_integers.shape == of_float.shape == latents.shape
    # 8 bits through some thirty layers; below 100 dB: it is not the float network.
    assert 20 < sqnr_db(of_float, of_integers) < 100


@pytest.mark.slow
def test_jitted_and_sharded_draws_what_is_drawn_without(quantized, drawn, latents):
    pipeline, params = quantized
    assert drawn.shape == (2, 16, 16, 3) and np.isfinite(drawn).all() and drawn.std() > 0.01
    ids, keys = shard(pipeline.prepare_inputs(PROMPTS)), jax.random.split(jax.random.key(0), 1)
    images = pipeline(ids, replicate(params), keys, STEPS, latents=shard(latents), jit=True).images
    # Other fused multiply-adds flip a code here and there, and guidance makes 7.5 of it.
    assert sqnr_db(drawn, np.asarray(images).reshape(drawn.shape)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v1"], indirect=True)
def test_two_devices_draw_what_one_does_from_a_restored_checkpoint(folder, quantized, drawn, latents, tmp_path):
    jaxdq.save(tmp_path / "quantized", quantized[1]["unet"])
    np.save(tmp_path / "latents.npy", latents)
    paths = [folder, tmp_path / "quantized", tmp_path / "latents.npy", tmp_path / "out.npy"]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    path = os.pathsep.join([str(Path(jaxdq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path}
    command = [sys.executable, "-c", TWO_DEVICES, *map(str, paths), *PROMPTS]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    images = np.load(tmp_path / "out.npy")
    assert images.shape == (2, 1, 16, 16, 3)
    assert sqnr_db(drawn, images.reshape(drawn.shape)) > 20


@pytest.mark.parametrize("attention", [{}, {"use_memory_efficient_attention": True}, {"split_head_dim": True}])
@pytest.mark.parametrize("config", [small_pipelines.UNET, small_pipelines.XL], ids=["v1", "xl"])
def test_every_dense_and_conv_of_the_flax_unet_is_a_site(config, attention):
    unet = FlaxUNet2DConditionModel(**config, **attention)
    params = jax.eval_shape(lambda: unet.init_weights(jax.random.key(0)))
    text = jnp.zeros((2, small_pipelines.TOKENS, config["cross_attention_dim"]))
    added = {"text_embeds": jnp.zeros((2, small_pipelines.WIDTH)), "time_ids": jnp.zeros((2, 6))}
    call = jnp.zeros((2, 4, 8, 8)), jnp.zeros(2, jnp.int32), text, added
    sites = find_sites(unet, params, *call)
    kernels = {
        "/".join(key.key for key in keys[:-1])
        for keys, _ in jax.tree_util.tree_leaves_with_path(params)
        if keys[-1].key == "kernel"
    }
    found = [site for site in sites if site.kind != "product"]
    assert {site.path for site in found} == kernels
    # Its attention calls jnp.einsum: float, and named as such.
    assert [site.path for site in sites if site.kind == "product" and site.unsupported] == ["(other contractions)"]
    assert not [site for site in found if site.unsupported or not site.batch_first]
    of_text = {path for path in kernels if path.endswith(("attn2/to_k", "attn2/to_v"))}
    assert {site.path for site in found if site.is_condition} == of_text != set()
    # What a prompt joins before the blocks project it is not of the time alone.
    of_time = "time_emb" if "addition_embed_type" not in config else "time_embedding"
    assert set(layers_of_time(unet, params, *call)) == {path for path in kernels if of_time in path}
    for part in ("attn1/to_q", "attn2/to_out_0", "ff/net_0/proj", "time_emb_proj", "time_embedding/linear_1"):
        assert any(part in path for path in kernels)


@pytest.mark.slow
def test_the_prompts_of_a_pipeline_become_conditions_of_both_halves(loaded, family):
    pipeline, params = loaded
    denoiser = jaxdq.denoiser_from_pipeline(pipeline, params, PROMPTS, guidance_scale=3.0)
    assert denoiser.shape == (8, 8, 4) and denoiser.module.guidance_scale == 3.0
    schedule = denoiser.schedule
    assert (schedule.num_timesteps, schedule.steps_offset, schedule.clip_range) == (1000, 1, None)
    np.testing.assert_allclose(schedule.alphas_cumprod, params["scheduler"].common.alphas_cumprod, rtol=1e-4)
    half = len(denoiser.conditions) // 2
    without, given = denoiser.conditions[:half], denoiser.conditions[half:]
    ids = pipeline.prepare_inputs(PROMPTS)
    if family == "xl":
        states, pooled = pipeline.get_embeddings(ids, params)
        for rows, expected in zip(given, (states, pooled, [[16, 16, 0, 0, 16, 16]] * 2), strict=True):
            np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
        assert not np.any(without[0]) and not np.any(without[1])
        np.testing.assert_array_equal(without[2], given[2])
    else:
        encode = pipeline.text_encoder
        expected = encode(ids, params=params["text_encoder"])[0]
        np.testing.assert_allclose(given[0], expected, rtol=1e-5, atol=1e-6)
        nothing = encode(pipeline.prepare_inputs(["", ""]), params=params["text_encoder"])[0]
        np.testing.assert_allclose(without[0], nothing, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_importing_jaxdq_imports_neither_diffusers_nor_transformers():
    code = "import sys, jaxdq, jaxdq.app.run; assert not {'diffusers', 'transformers', 'torch'} & set(sys.modules)"
    path = os.pathsep.join([str(Path(jaxdq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)


def in_half(params):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, params)


@pytest.fixture(scope="module")
def half(folder, family):
    """The pipeline in bfloat16: modules and params."""
    absent = {} if family == "xl" else {"safety_checker": None, "feature_extractor": None}
    pipeline, params = CLASSES[family].from_pretrained(folder, dtype=jnp.bfloat16, **absent)
    return pipeline, {name: part if name == "scheduler" else in_half(part) for name, part in params.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v1"], indirect=True)
def test_in_bfloat16_kernels_become_the_integers_of_their_values(half):
    pipeline, params = half
    denoiser = jaxdq.denoiser_from_pipeline(pipeline, params, PROMPTS)
    plan = plan_for(denoiser, jaxdq.recipes.minmax())
    assert {site.site.dtype for site in plan.sites if site.site.kind != "product"} == {"bfloat16"}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params["unet"])
    grids = weight_grids(params["unet"], plan, minmax_weights())
    calib = jaxdq.Calibration(grids, unfitted_acts(plan.columns, 1000), plan)
    narrow, same = (jax.jit(jaxdq.quantize)(tree, calib) for tree in (params["unet"], wide))
    for site in plan.sites:
        if site.weight is not None:
            kernels = [kernel_at(qparams.params, site.path) for qparams in (narrow, same)]
            np.testing.assert_array_equal(kernels[0].qvalue, kernels[1].qvalue)
            assert kernels[0].qparams.scale.dtype == jnp.float32
    assert narrow.params["conv_in"]["kernel"].dtype == jnp.bfloat16, "what stays in float stays as it was"
    called, new_params = jaxdq.quantize_pipeline(pipeline, params, narrow)
    text = jnp.zeros((2, small_pipelines.TOKENS, small_pipelines.WIDTH), jnp.bfloat16)
    out = jax.eval_shape(
        lambda unet, x: called.unet.apply({"params": unet}, x, jnp.full(2, 501), text).sample,
        new_params["unet"],
        jax.ShapeDtypeStruct((2, 4, 8, 8), jnp.bfloat16),
    )
    assert (out.dtype, out.shape) == (jnp.bfloat16, (2, 4, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v1"], indirect=True)
def test_in_bfloat16_the_pipeline_is_calibrated_and_draws(half, latents):
    pipeline, params = half
    denoiser = jaxdq.denoiser_from_pipeline(pipeline, params, PROMPTS)
    recipe = jaxdq.recipes.uniform_groups(num_groups=2, ranges="minmax")
    calib = jaxdq.calibrate(denoiser, recipe, sampler=jaxdq.ddim(STEPS), key=jax.random.key(0), num_images=2)
    on_integers, new_params = jaxdq.quantize_pipeline(pipeline, params, calib)
    assert jaxdq.stored_bytes(new_params["unet"]) < 0.7 * jaxdq.stored_bytes(params["unet"])
    text = jnp.asarray(denoiser.conditions[1])
    of_float, of_integers = (unet_output(*pair, latents, [text]) for pair in (half, (on_integers, new_params)))
    # bfloat16 has 8 bits of its own, so the two differ by both roundings.
    assert sqnr_db(of_float, of_integers) > 18
    ids, keys = shard(pipeline.prepare_inputs(PROMPTS)), jax.random.split(jax.random.key(0), 1)
    images = on_integers(ids, replicate(new_params), keys, STEPS, latents=shard(latents), jit=True).images
    assert images.shape == (1, 2, 16, 16, 3) and np.isfinite(np.asarray(images, np.float32)).all()


PIPELINE = SimpleNamespace(unet=1, scheduler=1, tokenizer=1, text_encoder=1)


@pytest.mark.parametrize(
    ("pipeline", "params", "message"),
    [
        (None, None, "transformers below 5"),
        (SimpleNamespace(unet=1), {}, "without scheduler, tokenizer, text_encoder"),
        (PIPELINE, None, "params is a NoneType without 'unet'"),
        (PIPELINE, {"vae": 1}, "without 'unet'"),
        (PIPELINE, {"unet": jaxdq.QuantizedParams({}, None, None)}, "quantized already"),
    ],
)
def test_refuses_what_is_no_pipeline(pipeline, params, message):
    for call in (
        lambda: jaxdq.denoiser_from_pipeline(pipeline, params, PROMPTS),
        lambda: jaxdq.quantize_pipeline(pipeline, params, None),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_refuses_what_is_no_calibration_and_no_prompts(loaded):
    with pytest.raises(InputError, match="calib is a dict"):
        jaxdq.quantize_pipeline(*loaded, {})
    with pytest.raises(InputError, match="pass a list of one text"):
        jaxdq.denoiser_from_pipeline(*loaded, "a cat")


@pytest.mark.slow
def test_refuses_params_that_are_replicated(loaded, quantized):
    plan = quantized[1]["unet"].plan
    calib = jaxdq.Calibration({}, unfitted_acts(plan.columns, 1000), plan)
    with pytest.raises(InputError, match="pass the float params that were calibrated"):
        jaxdq.quantize_pipeline(loaded[0], replicate(loaded[1]), calib)
