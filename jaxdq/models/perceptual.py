"""Networks whose features images are compared in, with published weights from a local file: InceptionV3 and LPIPS.

Weights are safetensors in the layout of the public PyTorch packages. Those come as .pth files, which are pickles, and
none is ever loaded here; one line makes the file, on a machine where the package's own file is trusted:

    safetensors.torch.save_file(torch.load("pt_inception-2015-12-05-6726825d.pth"), "inception.safetensors")
    safetensors.torch.save_file(lpips.LPIPS(net="alex").state_dict(), "alex.safetensors")
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxdq._common.errors import InputError
from jaxdq._common.paths import local_path

Features = Callable[[Any], Any]
"""images: f32[N, H, W, C] in [-1, 1] -> float[N, D]."""
Distance = Callable[[Any, Any], Any]
"""Two sets of images, f32[N, H, W, C] in [-1, 1] -> float[N]."""

Params = Mapping[str, jax.Array]
_SIDE = 299
_LEAST_SIDE = {"alex": 35, "vgg": 16}  # smaller images end before the last layer
_SHIFT, _SCALE = np.array([-0.030, -0.088, -0.188], np.float32), np.array([0.458, 0.448, 0.450], np.float32)
_POOLED = {"alex": ((3, 6), 3), "vgg": ((5, 10, 17, 24), 2)}  # convolutions behind a max-pooling, and its size


def inception_features(file: str | os.PathLike[str]) -> Features:
    """The 2,048 features that Fréchet inception distances are computed in.

    Images are resized to 299 x 299, bilinear without smoothing, one channel repeated to three; no rounding to 8 bits.

    Args:
        file: Weights of the InceptionV3 that FID packages share (`Conv2d_1a_3x3.conv.weight`, ...), as safetensors.

    Returns:
        Features, of one program for batches of one shape.

    Raises:
        InputError: No such file, or one of another network.

    Source: Szegedy et al., arXiv 1512.00567; Heusel et al., arXiv 1706.08500, whose weights pool without the border in
    two kinds of blocks and by the maximum in the last one.
    """
    params = _read(file, "Mixed_7c.branch_pool.conv.weight", "InceptionV3 as FID packages have it")

    @jax.jit
    def features(params: Params, images: jax.Array) -> jax.Array:
        images = jax.image.resize(_rgb(images), (len(images), _SIDE, _SIDE, 3), "bilinear", antialias=False)
        return _inception(params, images)

    return lambda images: features(params, jnp.asarray(images, jnp.float32))


def lpips_distance(file: str | os.PathLike[str]) -> Distance:
    """LPIPS, a distance of images in features that are weighted as people see differences.

    With f_l the features of layer l, each position's of length 1, and w_l the learned weights,

        d(a, b) = sum_l mean_positions sum_channels w_l (f_l(a) - f_l(b))^2.

    Args:
        file: Weights of the package `lpips`, backbone and linear heads (`net.slice1.0.weight`, `lin0.model.1.weight`,
            ...) of AlexNet or VGG16, as safetensors.

    Returns:
        Distance, of one program for batches of one shape.

    Raises:
        InputError: No such file, one of another network; images too small for the backbone.

    Source: Zhang et al., arXiv 1801.03924, version 0.1 of the weights.
    """
    params = _read(file, "lin0.model.1.weight", "LPIPS with AlexNet or VGG16")
    kind = "alex" if "net.slice5.10.weight" in params else "vgg"

    @jax.jit
    def distance(params: Params, one: jax.Array, two: jax.Array) -> jax.Array:
        layers = (_backbone(params, kind, (_rgb(images) - _SHIFT) / _SCALE) for images in (one, two))
        weighted = (
            jnp.sum((_unit(a) - _unit(b)) ** 2 * params[f"lin{index}.model.1.weight"].ravel(), -1)
            for index, (a, b) in enumerate(zip(*layers, strict=True))
        )
        return jnp.sum(jnp.stack([jnp.mean(layer, (1, 2)) for layer in weighted]), 0)

    def checked(one: Any, two: Any) -> jax.Array:
        one, two = (jnp.asarray(images, jnp.float32) for images in (one, two))
        if min(one.shape[1:3]) < _LEAST_SIDE[kind]:
            raise InputError(
                f"images of {one.shape[1]} x {one.shape[2]} are too small for LPIPS with this network; it needs at "
                f"least {_LEAST_SIDE[kind]} pixels along a side: leave LPIPS out."
            )
        return distance(params, one, two)

    return checked


def _read(file: str | os.PathLike[str], name: str, network: str) -> Params:
    path = local_path(file)
    try:
        params = load_file(path)
    except FileNotFoundError:
        raise InputError(f"there is no file '{path}'; pass the weights of {network} as safetensors.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is no safetensors file ({error}); convert the package's own with safetensors.torch.save_file."
        ) from None
    if name not in params:
        raise InputError(f"'{path}' has no '{name}', so it is not {network}; pass the file of that package.")
    return {key: jnp.asarray(value) for key, value in params.items() if np.issubdtype(value.dtype, np.floating)}


def _rgb(images: jax.Array) -> jax.Array:
    return jnp.repeat(images, 3, -1) if images.shape[-1] == 1 else images[..., :3]


def _conv(x: jax.Array, weight: jax.Array, stride: int, padding: Any) -> jax.Array:
    kernel = jnp.transpose(weight, (2, 3, 1, 0))
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dims, precision=lax.Precision.HIGHEST
    )


def _pool(x: jax.Array, kind: str, size: int, stride: int, padding: str) -> jax.Array:
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    if kind == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    sums, counts = (lax.reduce_window(a, 0.0, lax.add, window, strides, padding) for a in (x, jnp.ones_like(x)))
    return sums / counts  # the border is not counted


def _inception(params: Params, x: jax.Array) -> jax.Array:
    """f32[N, 2048] of images [N, 299, 299, 3]."""

    def conv(name: str, x: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
        scale = params[f"{name}.bn.weight"] / jnp.sqrt(params[f"{name}.bn.running_var"] + 1e-3)
        x = _conv(x, params[f"{name}.conv.weight"], stride, padding)
        return jax.nn.relu((x - params[f"{name}.bn.running_mean"]) * scale + params[f"{name}.bn.bias"])

    def chain(block: str, names: str, x: jax.Array, last: tuple[int, str] = (1, "SAME")) -> jax.Array:
        *first, end = names.split()
        for name in first:
            x = conv(f"{block}.{name}", x)
        return conv(f"{block}.{end}", x, *last)

    def numbered(name: str, count: int) -> str:
        return " ".join(f"{name}_{index + 1}" for index in range(count))

    down = (2, "VALID")
    x = conv("Conv2d_1a_3x3", x, *down)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x, 1, "VALID"))
    x = _pool(x, "max", 3, 2, "VALID")
    x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x), 1, "VALID")
    x = _pool(x, "max", 3, 2, "VALID")
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        branches = ("branch1x1", numbered("branch5x5", 2), numbered("branch3x3dbl", 3))
        parts = [chain(block, names, x) for names in branches]
        x = jnp.concatenate([*parts, chain(block, "branch_pool", _pool(x, "mean", 3, 1, "SAME"))], -1)
    parts = [chain("Mixed_6a", names, x, down) for names in ("branch3x3", numbered("branch3x3dbl", 3))]
    x = jnp.concatenate([*parts, _pool(x, "max", 3, 2, "VALID")], -1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        parts = [
            chain(block, names, x) for names in ("branch1x1", numbered("branch7x7", 3), numbered("branch7x7dbl", 5))
        ]
        x = jnp.concatenate([*parts, chain(block, "branch_pool", _pool(x, "mean", 3, 1, "SAME"))], -1)
    parts = [chain("Mixed_7a", names, x, down) for names in (numbered("branch3x3", 2), numbered("branch7x7x3", 4))]
    x = jnp.concatenate([*parts, _pool(x, "max", 3, 2, "VALID")], -1)
    for block, pooling in (("Mixed_7b", "mean"), ("Mixed_7c", "max")):
        three, double = chain(block, "branch3x3_1", x), chain(block, numbered("branch3x3dbl", 2), x)
        parts = [
            chain(block, "branch1x1", x),
            *(chain(block, f"branch3x3_2{side}", three) for side in "ab"),
            *(chain(block, f"branch3x3dbl_3{side}", double) for side in "ab"),
        ]
        x = jnp.concatenate([*parts, chain(block, "branch_pool", _pool(x, pooling, 3, 1, "SAME"))], -1)
    return jnp.mean(x, (1, 2))


def _backbone(params: Params, kind: str, x: jax.Array) -> list[jax.Array]:
    """What the last convolution of each slice returns, behind its ReLU."""
    found = {}
    names = (re.fullmatch(r"net\.slice(\d)\.(\d+)\.weight", name) for name in params)
    pooled, size = _POOLED[kind]
    for place, index in sorted((int(name[2]), int(name[1])) for name in names if name):
        weight = params[f"net.slice{index}.{place}.weight"]
        side = weight.shape[-1]
        stride, padding = (4, 2) if side == 11 else (1, side // 2)  # AlexNet's first
        x = _pool(x, "max", size, 2, "VALID") if place in pooled else x
        x = _conv(x, weight, stride, [(padding, padding)] * 2) + params[f"net.slice{index}.{place}.bias"]
        found[index] = x = jax.nn.relu(x)
    return [found[index] for index in sorted(found)]


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)) + 1e-10)
