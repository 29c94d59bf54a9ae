"""A run: one quantization from model to report, and the folder that it leaves.

    DIR/quantized/     the checkpoint (`jaxdq.save`)
    DIR/model/         the float model's configurations, without its weights: enough to sample from DIR alone
    DIR/metrics.json   settings and measurements
    DIR/samples.png    float images above quantized ones, from the same noise
    DIR/report.html    all of it on one page

A folder is built beside its place and moved there when it is whole: a kill leaves the earlier run, or none.
"""

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq._common.folders import check_room, state_beside
from jaxdq._common.paths import local_path
from jaxdq.app import report
from jaxdq.app.conditions import choice_of_run, load_model
from jaxdq.app.report import QUANTIZED, check_free, read_metrics, staged
from jaxdq.app.settings import (
    CALIBRATE,
    EVALUATE,
    SAMPLE,
    Settings,
    check_seed,
    command_of,
    key_of,
    make_recipe,
    make_sampler,
    parse_classes,
    ranges_of,
)
from jaxdq.app.settings import DEFAULT_RECIPE as DEFAULT_RECIPE
from jaxdq.app.settings import recipes_by_name as recipes_by_name
from jaxdq.calibration import Recipe, observed_ranges, run_recipe
from jaxdq.checkpoint import restore, save, versions
from jaxdq.diffusion import Denoiser, Sampler
from jaxdq.evaluation import Evaluation, evaluate
from jaxdq.grid import stored_bytes
from jaxdq.linen import QuantizedParams, check_belongs, quantize
from jaxdq.models import text
from jaxdq.models.decoding import Decode, Decoder, decoded, decoder_of
from jaxdq.models.perceptual import Distance, Features, inception_features, lpips_distance
from jaxdq.models.unet import bundled_models, without_network, write_configs
from jaxdq.sampling import sample

MODEL = "model"
# The settings that an evaluation has in common with the run it measures.
_EVALUATED = "model recipe weight_bits act_bits groups sampler eta steps seed images batch_size".split()


def quantize_model(
    settings: Settings, out: str | os.PathLike[str], *, overwrite: bool = False, decode: Decode | None = None
) -> dict[str, Any]:
    """Quantizes a model and writes the run folder: load, calibrate, quantize, evaluate, report.

    While it calibrates, what was learned so far is kept in a hidden folder beside `out`; the same call after a kill
    goes on from there.

    Args:
        settings: Settings of the run.
        out: The folder to write; one that holds anything is refused.
        overwrite: Whether an earlier run there is replaced, once the new one is whole.
        decode: As in `jaxdq.evaluate`; None takes the decoder in the model's `vae/`, if it can be read.

    Returns:
        The contents of metrics.json.

    Raises:
        InputError: The folder, the model or a setting can't be used; nothing is written then.
    """
    out = local_path(out)
    check_free(out, overwrite=overwrite)
    recipe = make_recipe(settings)
    if settings.sampler is not None:
        make_sampler(settings.sampler, settings.steps, settings.eta)  # refused before the model is read
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        denoiser, choice = load_model(settings)
        settings = dataclasses.replace(settings, sampler=settings.sampler or denoiser.sampler)
        sampler = _sampler_of(settings)
        decoder = _decoder(decode, settings.model)
        sampler.coefficients(denoiser.schedule)  # refuses too many steps before any work is done
        check_room(out, stored_bytes(denoiser.params) * settings.weight_bits // 32)
    with state_beside(out) as state, staged(out, overwrite=overwrite) as folder:
        with _timed(seconds, "calibrate"):
            work = run_recipe(
                denoiser,
                recipe,
                sampler=sampler,
                key=key_of(settings.seed, CALIBRATE),
                num_images=settings.calibration_images,
                batch_size=settings.batch_size,
                checkpoint_dir=state,
            )
        with _timed(seconds, "quantize"):
            qparams = jax.block_until_ready(
                jax.jit(quantize, static_argnames="dtype")(denoiser.params, work.calib, dtype=settings.dtype)
            )
        with _timed(seconds, "save"):
            save(folder / QUANTIZED, qparams)
            write_configs(settings.model, folder / MODEL)
            if choice is None or choice.kind != "classes":  # classes are known by their numbers
                text.save_conditions(denoiser, folder / MODEL)
        evaluation = _evaluate(denoiser, qparams, sampler, settings, decoder)
        learned = {name: {key: log[key] for key in log if key != "updates"} for name, log in work.log}
        metrics = report.to_json_values(
            {
                **_asked(settings, recipe, out),
                "groups": qparams.acts.num_groups,  # a method may give each step its own
                **report.measured(denoiser, qparams, evaluation, folder / QUANTIZED),
                "no_decoder": decoder.reason,
                "notes": list(denoiser.notes),
                "conditions": choice and choice.seen(calibrated=work.problem.rows, evaluated=evaluation.rows),
                "calibration": learned,
                "seconds": {**seconds, **evaluation.seconds},
            }
        )
        report.write_pages(folder, metrics, evaluation, denoiser.params, qparams, observed_ranges(work))
        report.write_metrics(folder, metrics)
    return metrics


def evaluate_run(
    folder: str | os.PathLike[str],
    *,
    model: str | None = None,
    images: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    classes: str | None = None,
    decode: Decode | None = None,
    inception: str | os.PathLike[str] | None = None,
    lpips: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Measures the run's quantized model against the float one again; unchanged settings give the run's own numbers.

    Args:
        folder: A run.
        model: The float model, where it is no longer at the place that metrics.json names.
        images: Number of images to draw; None takes the run's.
        steps: Number of steps of the sampler; None takes the run's.
        seed: None takes the run's.
        classes: As in `Settings`; None takes the run's.
        decode: As in `quantize_model`.
        inception: Weights in whose features Fréchet distances are computed, `models.perceptual.inception_features`.
        lpips: Weights of `models.perceptual.lpips_distance`, which is measured beside the rest.

    Returns:
        As metrics.json, without what belongs to the making of the run.

    Raises:
        InputError: The folder is no run, or the model is not the one that was quantized.
    """
    folder = local_path(folder)
    metrics = read_metrics(folder)
    given = {"model": model, "images": images, "steps": steps, "seed": seed, "classes": classes}
    asked = {name: metrics[name] for name in _EVALUATED} | {"classes": metrics.get("classes")}
    asked |= {name: value for name, value in given.items() if value is not None}
    settings = Settings(**asked)
    features = None if inception is None else inception_features(inception)
    distance = None if lpips is None else lpips_distance(lpips)
    sampler = _sampler_of(settings)
    qparams = restore(folder / QUANTIZED)
    with without_network() if model is None else contextlib.nullcontext():
        denoiser = text.load_with_conditions(settings.model, folder / MODEL)
        decoder = _decoder(decode, settings.model)
    denoiser, choice = choice_of_run(denoiser, metrics, settings.class_ids)
    check_belongs(
        denoiser.params, qparams.plan, f"'{settings.model}'", "pass the model that was quantized with --model"
    )
    if decoder.decode is None:
        _check_images(denoiser, features, distance)
    evaluation = _evaluate(denoiser, qparams, sampler, settings, decoder, features=features, distance=distance)
    named = "" if inception is None else "features of InceptionV3"
    measured = report.measured(denoiser, qparams, evaluation, folder / QUANTIZED, named)
    return report.to_json_values({**asked, **measured, "conditions": choice and choice.seen(evaluated=evaluation.rows)})


def _check_images(denoiser: Denoiser, features: Features | None, distance: Distance | None) -> None:
    """Refuses, before any is drawn, images that networks which compare them can't look at."""
    if (features or distance) and denoiser.schedule.clip_range is None:
        raise InputError(
            f"'{denoiser.name}' draws latents and has no decoder that can be read, and these networks look at images; "
            f"leave --inception and --lpips out."
        )
    if distance is not None:
        image = jax.ShapeDtypeStruct((1, *denoiser.shape), jnp.float32)
        jax.eval_shape(distance, image, image)


def sample_run(
    folder: str | os.PathLike[str],
    *,
    images: int = 16,
    steps: int | None = None,
    seed: int = 0,
    classes: str | None = None,
    decode: Decode | None = None,
) -> np.ndarray:
    """Draws images from a run folder alone.

    Args:
        folder: A run; the float model's weights are not needed.
        images: Number of images to draw, at least 1.
        steps: Number of steps of the sampler; None takes the run's.
        seed: Seed of the initial noise.
        classes: As in `Settings`; images cycle through them. None takes the run's.
        decode: As in `quantize_model`, where the model still is at the place that metrics.json names.

    Returns:
        float32[N, H, W, C], as `jaxdq.sample`; decoded, where there is a decoder.

    Raises:
        InputError: The folder is no run, a number is out of its range, or the model has no such classes.
    """
    folder = local_path(folder)
    metrics = read_metrics(folder)
    check_seed(seed)
    classes = metrics.get("classes") if classes is None else classes
    class_ids = None if classes is None else parse_classes(classes)
    sampler = make_sampler(metrics["sampler"], metrics["steps"] if steps is None else steps, metrics["eta"])
    denoiser = text.load_with_conditions(folder / MODEL, folder / MODEL, weights=False)
    denoiser, _ = choice_of_run(denoiser, metrics, class_ids)
    qparams = restore(folder / QUANTIZED)
    settings = {"num_images": images, "key": key_of(seed, SAMPLE), "batch_size": metrics["batch_size"]}
    drawn = np.asarray(sample(denoiser, qparams, sampler=sampler, **settings))
    is_there = metrics["model"] in bundled_models() or Path(metrics["model"]).is_dir()
    decode = decode or (decoder_of(metrics["model"]).decode if is_there else None)
    return drawn if decode is None else decoded(decode, drawn, metrics["batch_size"])


def _sampler_of(settings: Settings) -> Sampler:
    assert settings.sampler is not None
    return make_sampler(settings.sampler, settings.steps, settings.eta)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def _decoder(decode: Decode | None, model: str) -> Decoder:
    return Decoder(decode) if decode is not None else decoder_of(model)


def _evaluate(
    denoiser: Denoiser,
    qparams: QuantizedParams,
    sampler: Sampler,
    settings: Settings,
    decoder: Decoder,
    **networks: Any,
) -> Evaluation:
    return evaluate(
        denoiser,
        qparams,
        sampler=sampler,
        key=key_of(settings.seed, EVALUATE),
        num_images=settings.images,
        batch_size=settings.batch_size,
        decode=decoder.decode,
        **networks,
    )


def _asked(settings: Settings, recipe: Recipe, out: Path) -> dict[str, Any]:
    """The part of metrics.json that says what was run, where and how."""
    asked = dataclasses.asdict(settings)
    if settings.model not in bundled_models() and local_path(settings.model).is_dir():
        asked["model"] = str(local_path(settings.model).resolve())  # so that `evaluate` finds it from any folder
    asked["groups"], asked["ranges"] = recipe.num_groups, ranges_of(settings)
    return {
        **asked,
        "recipe_settings": recipe.settings,
        "command": command_of(settings, recipe, out),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "versions": {**versions(), "python": platform.python_version()},
    }
