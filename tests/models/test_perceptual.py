"""InceptionV3 and LPIPS against torch, on random weights of their published shapes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxdq import InputError
from jaxdq.models import perceptual

RNG = np.random.default_rng(0)


def conv(weights, name, inputs, outputs, height, width=None):
    shape = (outputs, inputs, height, height if width is None else width)
    weights[f"{name}.conv.weight"] = (RNG.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype("f4")
    for part in ("weight", "bias", "running_mean", "running_var"):
        weights[f"{name}.bn.{part}"] = (np.abs(RNG.standard_normal(outputs)) * 0.1 + (part[-1] in "tr")).astype("f4")


def inception_weights():
    """By the table of the paper: inputs and outputs of each convolution."""
    found = {}
    for name, *sizes in (
        ("1a_3x3", 3, 32, 3),
        ("2a_3x3", 32, 32, 3),
        ("2b_3x3", 32, 64, 3),
        ("3b_1x1", 64, 80, 1),
        ("4a_3x3", 80, 192, 3),
    ):
        conv(found, f"Conv2d_{name}", *sizes)
    for block, inputs, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        for name, *sizes in (
            ("branch1x1", inputs, 64, 1),
            ("branch5x5_1", inputs, 48, 1),
            ("branch5x5_2", 48, 64, 5),
            ("branch3x3dbl_1", inputs, 64, 1),
            ("branch3x3dbl_2", 64, 96, 3),
            ("branch3x3dbl_3", 96, 96, 3),
            ("branch_pool", inputs, pool, 1),
        ):
            conv(found, f"Mixed_{block}.{name}", *sizes)
    for name, *sizes in (
        ("branch3x3", 288, 384, 3),
        ("branch3x3dbl_1", 288, 64, 1),
        ("branch3x3dbl_2", 64, 96, 3),
        ("branch3x3dbl_3", 96, 96, 3),
    ):
        conv(found, f"Mixed_6a.{name}", *sizes)
    for block, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        for name, *sizes in (
            ("branch1x1", 768, 192, 1),
            ("branch7x7_1", 768, c, 1),
            ("branch7x7_2", c, c, 1, 7),
            ("branch7x7_3", c, 192, 7, 1),
            ("branch7x7dbl_1", 768, c, 1),
            ("branch7x7dbl_2", c, c, 7, 1),
            ("branch7x7dbl_3", c, c, 1, 7),
            ("branch7x7dbl_4", c, c, 7, 1),
            ("branch7x7dbl_5", c, 192, 1, 7),
            ("branch_pool", 768, 192, 1),
        ):
            conv(found, f"Mixed_{block}.{name}", *sizes)
    for name, *sizes in (
        ("branch3x3_1", 768, 192, 1),
        ("branch3x3_2", 192, 320, 3),
        ("branch7x7x3_1", 768, 192, 1),
        ("branch7x7x3_2", 192, 192, 1, 7),
        ("branch7x7x3_3", 192, 192, 7, 1),
        ("branch7x7x3_4", 192, 192, 3),
    ):
        conv(found, f"Mixed_7a.{name}", *sizes)
    for block, inputs in (("7b", 1280), ("7c", 2048)):
        for name, *sizes in (
            ("branch1x1", inputs, 320, 1),
            ("branch3x3_1", inputs, 384, 1),
            ("branch3x3_2a", 384, 384, 1, 3),
            ("branch3x3_2b", 384, 384, 3, 1),
            ("branch3x3dbl_1", inputs, 448, 1),
            ("branch3x3dbl_2", 448, 384, 3),
            ("branch3x3dbl_3a", 384, 384, 1, 3),
            ("branch3x3dbl_3b", 384, 384, 3, 1),
            ("branch_pool", inputs, 192, 1),
        ):
            conv(found, f"Mixed_{block}.{name}", *sizes)
    return found


def in_torch(weights, images):
    """The same network in torch's words, block by block as the public packages have them."""
    f, w = torch.nn.functional, {name: torch.from_numpy(value) for name, value in weights.items()}

    def unit(name, x, stride=1, padding=0):
        x = f.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
        bn = (w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return torch.relu(f.batch_norm(x, *bn, eps=0.001))

    def mean(x):
        return f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    x = torch.from_numpy(images.transpose(0, 3, 1, 2))
    x = f.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    x = unit("Conv2d_2b_3x3", unit("Conv2d_2a_3x3", unit("Conv2d_1a_3x3", x, 2)), padding=1)
    x = f.max_pool2d(unit("Conv2d_4a_3x3", unit("Conv2d_3b_1x1", f.max_pool2d(x, 3, 2))), 3, 2)
    for m in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):
        five = unit(m + "branch5x5_2", unit(m + "branch5x5_1", x), padding=2)
        three = unit(m + "branch3x3dbl_2", unit(m + "branch3x3dbl_1", x), padding=1)
        three = unit(m + "branch3x3dbl_3", three, padding=1)
        x = torch.cat([unit(m + "branch1x1", x), five, three, unit(m + "branch_pool", mean(x))], 1)
    m = "Mixed_6a."
    three = unit(m + "branch3x3dbl_2", unit(m + "branch3x3dbl_1", x), padding=1)
    x = torch.cat([unit(m + "branch3x3", x, 2), unit(m + "branch3x3dbl_3", three, 2), f.max_pool2d(x, 3, 2)], 1)
    for m in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):
        seven = unit(m + "branch7x7_2", unit(m + "branch7x7_1", x), padding=(0, 3))
        seven = unit(m + "branch7x7_3", seven, padding=(3, 0))
        double = unit(m + "branch7x7dbl_2", unit(m + "branch7x7dbl_1", x), padding=(3, 0))
        double = unit(m + "branch7x7dbl_3", double, padding=(0, 3))
        double = unit(m + "branch7x7dbl_5", unit(m + "branch7x7dbl_4", double, padding=(3, 0)), padding=(0, 3))
        x = torch.cat([unit(m + "branch1x1", x), seven, double, unit(m + "branch_pool", mean(x))], 1)
    m = "Mixed_7a."
    seven = unit(m + "branch7x7x3_2", unit(m + "branch7x7x3_1", x), padding=(0, 3))
    seven = unit(m + "branch7x7x3_4", unit(m + "branch7x7x3_3", seven, padding=(3, 0)), 2)
    three = unit(m + "branch3x3_2", unit(m + "branch3x3_1", x), 2)
    x = torch.cat([three, seven, f.max_pool2d(x, 3, 2)], 1)
    for m, pooled in (("Mixed_7b.", mean), ("Mixed_7c.", lambda x: f.max_pool2d(x, 3, 1, 1))):
        three = unit(m + "branch3x3_1", x)
        three = [unit(m + "branch3x3_2a", three, padding=(0, 1)), unit(m + "branch3x3_2b", three, padding=(1, 0))]
        two = unit(m + "branch3x3dbl_2", unit(m + "branch3x3dbl_1", x), padding=1)
        two = [unit(m + "branch3x3dbl_3a", two, padding=(0, 1)), unit(m + "branch3x3dbl_3b", two, padding=(1, 0))]
        x = torch.cat([unit(m + "branch1x1", x), *three, *two, unit(m + "branch_pool", pooled(x))], 1)
    return x.mean((2, 3)).numpy()


@pytest.mark.slow
def test_oracle_inception_in_torch(tmp_path):
    weights = inception_weights()
    # What the literature counts without the classifier.
    assert sum(value.size for name, value in weights.items() if "running" not in name) == 21_785_568
    save_file(weights, tmp_path / "inception.safetensors")
    images = RNG.uniform(-1, 1, (2, 20, 24, 3)).astype(np.float32)
    found = perceptual.inception_features(tmp_path / "inception.safetensors")(images)
    expected = in_torch(weights, images)
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


# Channels in and out, side and place of each convolution.
BACKBONES = {
    "alex": [(1, 0, 3, 64, 11), (2, 3, 64, 192, 5), (3, 6, 192, 384, 3), (4, 8, 384, 256, 3), (5, 10, 256, 256, 3)],
    "vgg": [
        (1, 0, 3, 64, 3), (1, 2, 64, 64, 3), (2, 5, 64, 128, 3), (2, 7, 128, 128, 3), (3, 10, 128, 256, 3),
        (3, 12, 256, 256, 3), (3, 14, 256, 256, 3), (4, 17, 256, 512, 3), (4, 19, 512, 512, 3), (4, 21, 512, 512, 3),
        (5, 24, 512, 512, 3), (5, 26, 512, 512, 3), (5, 28, 512, 512, 3),
    ],
}  # fmt: skip


def lpips_weights(kind):
    found, last = {}, {}
    for index, place, inputs, outputs, side in BACKBONES[kind]:
        shape = (outputs, inputs, side, side)
        scale = np.sqrt(2 / np.prod(shape[1:]))
        found[f"net.slice{index}.{place}.weight"] = (RNG.standard_normal(shape) * scale).astype(np.float32)
        found[f"net.slice{index}.{place}.bias"] = (0.1 * RNG.standard_normal(outputs)).astype(np.float32)
        last[index] = outputs
    for index, width in last.items():
        found[f"lin{index - 1}.model.1.weight"] = RNG.uniform(0, 1, (1, width, 1, 1)).astype(np.float32)
    return found


def lpips_in_torch(weights, kind, one, two):
    f, w = torch.nn.functional, {name: torch.from_numpy(value) for name, value in weights.items()}
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def slices(images):
        x = torch.from_numpy(((images - shift.numpy()) / scale.numpy()).transpose(0, 3, 1, 2))
        before = None
        for index, place, *_, side in BACKBONES[kind]:
            if before is not None and place - before > 2:  # between them a ReLU and a pooling
                x = f.max_pool2d(x, 3, 2) if kind == "alex" else f.max_pool2d(x, 2, 2)
            weight, bias = w[f"net.slice{index}.{place}.weight"], w[f"net.slice{index}.{place}.bias"]
            x = torch.relu(f.conv2d(x, weight, bias, 4 if side == 11 else 1, 2 if side == 11 else side // 2))
            before, last = place, (index, x)
            found[index] = last[1]
        return dict(found)

    total = 0
    found: dict = {}
    first = slices(one)
    second = slices(two)
    for index in first:
        a, b = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (first[index], second[index]))
        total = total + f.conv2d((a - b) ** 2, w[f"lin{index - 1}.model.1.weight"]).mean((1, 2, 3))
    return total.numpy()


@pytest.mark.parametrize("kind", [pytest.param("vgg", marks=pytest.mark.slow), "alex"])
def test_oracle_lpips_in_torch(tmp_path, kind):
    weights = lpips_weights(kind)
    save_file(weights, tmp_path / "lpips.safetensors")
    one, two = RNG.uniform(-1, 1, (2, 3, 40, 36, 3)).astype(np.float32)
    distance = perceptual.lpips_distance(tmp_path / "lpips.safetensors")
    np.testing.assert_allclose(distance(one, two), lpips_in_torch(weights, kind, one, two), rtol=1e-4)
    np.testing.assert_array_equal(distance(one, one), 0)
    # One channel is grey.
    grey = one[..., :1]
    np.testing.assert_array_equal(distance(grey, two), distance(np.repeat(grey, 3, -1), two))
    with pytest.raises(InputError, match="images of 8 x 8 are too small for LPIPS"):
        distance(jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize("make", [perceptual.inception_features, perceptual.lpips_distance])
def test_files_that_are_something_else_are_told(tmp_path, make):
    with pytest.raises(InputError, match="there is no file"):
        make(tmp_path / "none.safetensors")
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(InputError, match="is no safetensors file"):
        make(tmp_path / "pickle.pth")
    save_file({"weight": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"has no '.*', so it is not"):
        make(tmp_path / "other.safetensors")
