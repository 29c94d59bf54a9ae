"""Train a small diffusion transformer on scikit-learn's scans of digits, and give it the outliers that large ones have.

    python scripts/train_dit.py --out out/dit
    python scripts/bench_adpdm.py --model out/dit --bits W4A8 W4A4 --methods minmax adpdm --seeds 1

About twenty minutes of one core. The state is saved every 250 updates under --work; the same command continues from
there and ends with the same weights. They are made and not shipped.

Outliers come in two ways. Training has a high rate and no weight decay. And afterwards `with_outliers` moves scale
between the gains of some channels and the rows that read them, as is found in published transformers, where gains of
norms differ by far more than the weights behind them: that leaves the float network as it is, to the bit, and is hard
on any grid that the channels of a tensor, or the rows of a kernel, have in common. Noise SQNR and image PSNR in dB, 64
images, seed 0, jax 0.10.2 on a CPU:

             before, min-max   with outliers, min-max   with outliers, adpdm of 8 groups
    W8A8     47.9, 52.7        33.3, 33.3
    W4A8     30.9, 28.5        23.2, 16.0               22.7, 15.4
    W4A4     17.5,  6.6         8.7,  7.0               15.4,  8.1

Stronger outliers are nothing that learned ranges repair. At W4A8 min-max and adpdm have 8.7 and 10.8 dB with one
channel in 16 of each kind (gains 4 to 16, and 1/16 to 1/8), 3.1 and 3.9 with one in 64 (16 to 32, and 1/64 to 1/32).
"""

import argparse
from pathlib import Path
from typing import Any

import dit
import jax
import jax.numpy as jnp
import numpy as np
from train_digits import SCHEDULER_CONFIG, SIZE, TrainState, load_scans, make_optimizer, make_update, train

LOUD, QUIET = (8, 32), (1 / 32, 1 / 8)  # least and most gain of outlying channels; powers of two
SHARE = 1 / 64  # of all channels that are loud, and as many that are quiet


def main(argv: list[str] | None = None) -> None:
    """Train, or continue, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/dit"), help="folder to write")
    parser.add_argument("--work", type=Path, default=Path("out/train_dit"), help="folder of the running state")
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    args = parser.parse_args(argv)

    module = dit.DiT(size=SIZE, width=args.width, depth=args.depth)
    images, _, labels, _ = load_scans()
    first = jnp.zeros((1, SIZE, SIZE, 1)), jnp.asarray(0), jnp.zeros((1,), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(1), *first)["params"]
    optimizer = make_optimizer(args.learning_rate, args.updates, weight_decay=0.0)
    update = make_update(module, optimizer, jnp.asarray(images), args.batch_size, jnp.asarray(labels))
    state = train(update, TrainState(params, params, optimizer.init(params)), args.updates, args.work)
    dit.save(args.out, module, with_outliers(state.ema), SCHEDULER_CONFIG)


def with_outliers(params: Any) -> Any:
    """The same function with other weights: some channels louder and some quieter than the rest, by powers of two.

    What feeds a channel (a norm's gain and its shift, a value's column) is multiplied by the channel's gain, and the
    rows of the kernel that reads it are divided. Every product and sum keeps its bits, but for the gains' exponent: the
    float images stay the same. A loud channel stretches the range of the tensor; the rows of a quiet one stretch those
    of the kernel.
    """
    params = jax.tree.map(np.array, params)
    rng = np.random.default_rng(0)
    width = params["positions"].shape[-1]
    stream = gains(rng, width)  # what sticks out of the residual stream does so in all blocks
    for block in (part for name, part in sorted(params.items()) if name.startswith("block_")):
        for norm, part, reader in (("norm_1", 0, "qkv"), ("norm_2", 3, "mlp_in")):
            shift = slice(part * width, (part + 1) * width)
            block[norm]["scale"] *= stream
            block["modulation"]["kernel"][:, shift] *= stream
            block["modulation"]["bias"][shift] *= stream
            block[reader]["kernel"] /= stream[:, None]
        values = gains(rng, width)
        block["qkv"]["kernel"][:, 2 * width :] *= values
        block["qkv"]["bias"][2 * width :] *= values
        block["out"]["kernel"] /= values[:, None]
    return params


def gains(rng: np.random.Generator, width: int) -> np.ndarray:
    """One gain a channel, float32[width]: 1 of most."""
    found, chosen = np.ones(width, np.float32), rng.permutation(width)
    many = max(1, round(width * SHARE))
    for (least, most), channels in ((LOUD, chosen[:many]), (QUIET, chosen[-many:])):
        found[channels] = 2.0 ** rng.integers(np.log2(least), np.log2(most), len(channels), endpoint=True)
    return found


if __name__ == "__main__":
    main()
