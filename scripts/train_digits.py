"""Train the bundled model `digits` on scikit-learn's 8x8 scans of handwritten digits, drawn at 16x16.

    python scripts/train_digits.py --out jaxdq/models/bundled/digits

Forty minutes on two idle CPU cores. The state is saved every 250 updates under --work; the same command continues from
there and ends with the same weights, because every update draws its batch and noise from its own number.

The bundled weights had 4,600 updates, but not in one run: the first 2,000 were without the weighting of `make_update`,
and the rate fell twice at the end, from update 3,750 to 4,250 and, from a third of its height, to 4,600.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxdq.diffusion import schedule_from_config
from jaxdq.models.unet import save_unet_folder, unet2d_from_config

SIZE = 16
NUM_HELD_OUT = 297
EMA_DECAY = 0.999
SNR_CAP = 5.0
SAVE_EVERY = 250

MODULE_CONFIG: dict[str, Any] = {
    "sample_size": SIZE,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [24, 48, 56],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "variance_type": "fixed_large",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}


class TrainState(NamedTuple):
    """All that an update needs of the ones before it."""

    params: Any
    ema: Any
    opt_state: Any


def load_scans() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train images, held-out images (float32[N, 16, 16, 1] in [-1, 1]) and the labels of both (int[N])."""
    digits = load_digits()
    small = np.asarray(digits.images, np.float32)[..., None] / 8 - 1
    large = jax.image.resize(small, (len(small), SIZE, SIZE, 1), "cubic")
    images = np.clip(np.asarray(large), -1, 1)
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=NUM_HELD_OUT, random_state=0, stratify=digits.target
    )
    return train, test, train_labels, test_labels


def make_optimizer(peak: float, num_updates: int, weight_decay: float = 1e-4) -> optax.GradientTransformation:
    """AdamW whose rate rises over 200 updates, stays at ``peak``, and falls as a cosine over the last fifth."""
    num_falling = max(1, num_updates // 5)
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, peak, 200), optax.cosine_decay_schedule(peak, num_falling)],
        [num_updates - num_falling],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=weight_decay))


def make_update(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    images: jax.Array,
    batch_size: int,
    labels: jax.Array | None = None,
) -> Any:
    """Return ``update(state, index) -> (state, loss)``, jitted: one step of Ho et al. 2020, algorithm 1, reweighted.

    The squared error at time t counts ``min(snr, SNR_CAP) / snr`` with ``snr = abar / (1 - abar)`` ("Min-SNR", Hang et
    al. 2023). Unweighted, half of the loss comes from t < 125, where the strokes are long drawn. A network of
    classes is given those of its images, `labels`, after the time.
    """
    alphas_cumprod = jnp.asarray(schedule_from_config(SCHEDULER_CONFIG).alphas_cumprod, jnp.float32)
    num_timesteps = len(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weight = jnp.minimum(snr, SNR_CAP) / snr

    def loss_fn(params: Any, key: jax.Array) -> jax.Array:
        key_image, key_t, key_noise = jax.random.split(key, 3)
        chosen = jax.random.randint(key_image, (batch_size,), 0, len(images))
        x0, classes = images[chosen], () if labels is None else (labels[chosen],)
        # One offset for evenly spread times: the same mean as independent times, less variance.
        spread = (jnp.arange(batch_size) + jax.random.uniform(key_t)) / batch_size
        t = jnp.minimum(spread * num_timesteps, num_timesteps - 1).astype(jnp.int32)
        noise = jax.random.normal(key_noise, x0.shape)
        alpha_cumprod = alphas_cumprod[t][:, None, None, None]
        x = jnp.sqrt(alpha_cumprod) * x0 + jnp.sqrt(1 - alpha_cumprod) * noise
        error = module.apply({"params": params}, x, t, *classes) - noise
        return jnp.mean(weight[t] * jnp.mean(error**2, axis=(1, 2, 3)))

    @jax.jit
    def update(state: TrainState, index: jax.Array) -> tuple[TrainState, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, jax.random.fold_in(jax.random.key(0), index))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average starts short, so that the random first weights are soon forgotten.
        decay = jnp.minimum(EMA_DECAY, (1 + index) / (10 + index))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        return TrainState(params, ema, opt_state), loss

    return update


def train(update: Any, state: TrainState, num_updates: int, work: Path) -> TrainState:
    """Run the updates, or those that are missing: the state is kept in the folder `work`."""
    work.mkdir(parents=True, exist_ok=True)
    saved, start = work / "state.msgpack", 0
    if saved.exists():
        start, state = flax.serialization.from_bytes((start, state), saved.read_bytes())
    began, losses = time.perf_counter(), []
    for index in range(start, num_updates):
        state, loss = update(state, jnp.asarray(index))
        losses.append(float(loss))
        if (index + 1) % SAVE_EVERY == 0 or index + 1 == num_updates:
            partial = saved.with_suffix(".partial")
            partial.write_bytes(flax.serialization.to_bytes((index + 1, state)))
            partial.replace(saved)
            seconds = round(time.perf_counter() - began)
            print(json.dumps({"updates": index + 1, "loss": float(np.mean(losses)), "seconds": seconds}), flush=True)
            losses = []
    return state


def main() -> None:
    """Train, or continue, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, in diffusers' layout")
    parser.add_argument("--work", type=Path, default=Path("out/train_digits"), help="folder of the running state")
    parser.add_argument("--updates", type=int, default=4250)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()

    module = unet2d_from_config(MODULE_CONFIG)
    params = module.init(jax.random.key(1), jnp.zeros((1, SIZE, SIZE, 1)), 0)["params"]
    optimizer = make_optimizer(args.learning_rate, args.updates)
    update = make_update(module, optimizer, jnp.asarray(load_scans()[0]), args.batch_size)

    state = train(update, TrainState(params, params, optimizer.init(params)), args.updates, args.work)
    save_unet_folder(args.out, MODULE_CONFIG, state.ema, SCHEDULER_CONFIG)


if __name__ == "__main__":
    main()
