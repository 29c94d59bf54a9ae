"""What quantization makes of Stable Diffusion's UNets at their own size, told from shapes: no weights are needed.

    python scripts/count_stable_diffusion.py --models v1-4 v2-1 xl

Prints one JSON line for each: sites, and how many of them are products of attention; the share of multiply-accumulates
on integers with and without those products (a rule switches them on); bytes in float32, at W8 and at W4, as ratios too;
and the blocks that `reconstruct` learns one after the other: how many, the most weights of one, and bytes of one state
(a latent at one time) as the largest block keeps it and as all blocks see it in one call, without guidance; and what
`tabulate_time` puts tables in place of: layers, their parameters and multiply-accumulates, bytes of 50 rows in float16.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxdq
from jaxdq.app.inspection import inspection_of
from jaxdq.grid import stored_bytes
from jaxdq.linen import Plan, cut_into_blocks, kernel_at, layers_of_time, params_at, values_at_blocks
from jaxdq.models.unet import abstract_params, unet2d_condition_from_config

MODELS: dict[str, dict[str, Any]] = {  # unet/config.json where it differs from the class's defaults
    "v1-4": {  # CompVis/stable-diffusion-v1-4
        "sample_size": 64,
        "cross_attention_dim": 768,
    },
    "v2-1": {  # stabilityai/stable-diffusion-2-1
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "xl": {  # stabilityai/stable-diffusion-xl-base-1.0
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def main(argv: list[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    for name in parser.parse_args(argv).models:
        start = time.perf_counter()
        row = count(MODELS[name])
        print(json.dumps({"model": name, **row, "seconds": round(time.perf_counter() - start, 1)}), flush=True)


def count(config: dict[str, Any]) -> dict[str, Any]:
    """Count the sites, the arithmetic and the bytes of the network that a configuration describes."""
    module = unet2d_condition_from_config(config)
    side = config["sample_size"]
    # The noise schedule plays no part in any count.
    denoiser = jaxdq.Denoiser(
        module, abstract_params(module), jaxdq.linear_schedule(), (side, side, 4), module.abstract_conditions()
    )
    found = inspection_of(denoiser)
    sizes = {"float32": found.float32_bytes, **found.bytes_at}
    return {
        "params": found.num_params,
        "sites": len(found.plan.sites),
        "products": found.num_products,
        "integer_sites": sum(site.is_integer for site in found.plan.sites),
        "integer_mac_fraction": round(found.plan.integer_mac_fraction, 4),
        "integer_mac_fraction_with_products": round(found.mac_fraction_with_products, 4),
        "bytes": sizes,
        "of_float32": {name: round(size / found.float32_bytes, 4) for name, size in sizes.items()},
        "blocks": blocks_of(denoiser, [site.path for site in found.plan.sites if site.weight is not None]),
        "time": time_of(denoiser, found.plan),
    }


def time_of(denoiser: jaxdq.Denoiser, plan: Plan) -> dict[str, int]:
    """What tables over time stand for, by shapes."""
    x, t = jax.ShapeDtypeStruct((2, *denoiser.shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    layers = layers_of_time(denoiser.module, denoiser.params, x, t, *denoiser.abstract_args(2))
    own = {path: params_at(denoiser.params, path) for path in layers}
    return {
        "layers": len(layers),
        "params": sum(leaf.size for leaf in jax.tree.leaves(own)),
        "macs": sum(plan.by_path[path].site.macs for path in layers),
        "table_bytes": sum(50 * 2 * own[path]["kernel"].shape[-1] for path, is_read in layers.items() if is_read),
    }


def blocks_of(denoiser: jaxdq.Denoiser, kernels: list[str]) -> dict[str, int]:
    """What block reconstruction keeps, by shapes."""
    x, t = jax.ShapeDtypeStruct((1, *denoiser.shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    call = (x, t, *denoiser.abstract_args(1))
    blocks, _ = cut_into_blocks(denoiser.module, denoiser.params, kernels, *call)

    def seen(params: Any, *args: Any) -> Any:
        return values_at_blocks(blocks, lambda: denoiser.module.apply({"params": params}, *args))

    states = [stored_bytes(values) for values in jax.eval_shape(seen, denoiser.params, *call)]
    weights = [sum(kernel_at(denoiser.params, path).size for path in block.kernels) for block in blocks]
    return {
        "blocks": len(blocks),
        "most_weights": max(weights),
        "bytes_of_a_state": max(states),
        "bytes_of_a_state_in_all_blocks": sum(states),
    }


if __name__ == "__main__":
    main()
