import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import KNOWN_PARAMS, KNOWN_X, SHAPE, Known, tiny_quantized, toy_calibration, toy_params, toy_plan

from jaxdq import InputError, apply, checkpoint, ddim, restore, sample, save
from jaxdq._common import folders
from jaxdq.grid import QTensor, Scheme
from jaxdq.linen import Rule, quantize

T0 = np.int32(0)


def known_quantized(weight, act=None, params=KNOWN_PARAMS, x=KNOWN_X):
    act = act or Scheme(8, symmetric=False)
    plan = toy_plan(Known(), params, [Rule(".*", weight, act)], x, T0)
    return quantize(params, toy_calibration(Known(), params, plan, [0, 1], x, T0, num_groups=2))


def assert_same_bits(one, two):
    assert one.plan == two.plan
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert isinstance(b, jax.Array) and a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def tiny():
    return tiny_quantized()


@pytest.fixture
def saved(tmp_path, tiny):
    save(tmp_path / "quantized", tiny[1])
    return tmp_path / "quantized"


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_restores_bit_exact_at_every_width(tmp_path, bits):
    # Odd widths symmetric and per channel, even ones asymmetric and per tensor: each path of the format.
    weight = Scheme(bits, symmetric=bool(bits % 2), channel_axis=-1 if bits % 2 else None)
    qparams = known_quantized(weight, Scheme(bits))
    save(tmp_path / "q", qparams)
    assert_same_bits(qparams, restore(tmp_path / "q"))


class Scanned(nn.Module):
    """Three layers whose kernels are stacked along an axis."""

    axis: int

    @nn.compact
    def __call__(self, x, t):
        layers = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        return layers(nn.Dense(2, name="dense"), x, None)[0]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("weight", [Scheme(4, channel_axis=-1), Scheme(8, symmetric=False)])
def test_stacked_kernels_restore_bit_exact_and_run(tmp_path, axis, weight):
    module, x = Scanned(axis), np.float32([[1, -0.5], [0.25, 2]])
    params = toy_params(module, x, T0)
    plan = toy_plan(module, params, [Rule(".*", weight, Scheme(8, symmetric=False))], x, T0)
    qparams = quantize(params, toy_calibration(module, params, plan, [0, 0], x, T0))
    assert plan.integer_mac_fraction == 1 and qparams.params["dense"]["kernel"].qparams.scale.shape[axis] == 3
    save(tmp_path / "q", qparams)
    back = restore(tmp_path / "q")
    assert_same_bits(qparams, back)
    found, exact = (np.asarray(jax.jit(lambda p: apply(module, p, x, T0))(p)) for p in (back, params))
    # Three products of two terms: 15 codes to a peak where weights have 4 bits.
    assert abs(found - exact).max() < (0.3 if weight.bits == 4 else 0.03) * abs(exact).max()


def test_other_dtypes_restore_bit_exact(tmp_path):
    params = {"dense": dict(KNOWN_PARAMS["dense"]), "extra": {"half": jnp.ones((3, 2), jnp.bfloat16) / 3, "n": T0}}
    qparams = known_quantized(Scheme(8, channel_axis=-1), params=params)
    qparams = jax.tree.map(jnp.asarray, qparams)
    save(tmp_path / "q", qparams)
    assert_same_bits(qparams, restore(tmp_path / "q"))


def test_the_dtype_between_the_sites_is_restored(tmp_path):
    plan = toy_plan(Known(), KNOWN_PARAMS, [Rule(".*", Scheme(8), Scheme(8))], KNOWN_X, T0)
    calib = toy_calibration(Known(), KNOWN_PARAMS, plan, [0, 1], KNOWN_X, T0, num_groups=2)
    qparams = quantize(KNOWN_PARAMS, calib, dtype="bfloat16")
    save(tmp_path / "q", qparams)
    assert_same_bits(qparams, restore(tmp_path / "q"))
    assert restore(tmp_path / "q").plan.dtype == "bfloat16"


def test_images_are_equal_to_the_bit(tiny, saved):
    denoiser, qparams = tiny
    draw = {"sampler": ddim(2), "num_images": 3, "key": jax.random.key(0)}
    np.testing.assert_array_equal(sample(denoiser, qparams, **draw), sample(denoiser, restore(saved), **draw))


@pytest.mark.optimized  # by both processes: the same bits need the same compiler
def test_opens_in_a_process_that_knows_only_jaxdq_and_the_module(tmp_path):
    qparams = known_quantized(Scheme(4, channel_axis=-1))
    save(tmp_path / "q", qparams)
    program = f"""
import jax, jaxdq, numpy as np
from toys import Known, KNOWN_X
qparams = jaxdq.restore({str(tmp_path / "q")!r})
print(np.asarray(jax.jit(lambda q: jaxdq.apply(Known(), q, KNOWN_X, 1))(qparams)).tobytes().hex())
"""
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    expected = jax.jit(lambda q: apply(Known(), q, KNOWN_X, 1))(qparams)
    assert out.stdout.split()[-1] == np.asarray(expected).tobytes().hex()


def test_exhaustive_a_flipped_byte_in_any_file_is_found(saved):
    files = [file for file in saved.rglob("*") if file.is_file()]
    assert len(files) >= 3
    for file in files:
        whole = file.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1} if whole else ():
            flipped = bytearray(whole)
            flipped[position] ^= 0x01
            file.write_bytes(bytes(flipped))
            with pytest.raises(InputError, match=f"{file.name}.*(damaged|can't be read|lacks)"):
                restore(saved)
        file.write_bytes(whole)
    restore(saved)


def test_every_field_of_the_manifest_is_checked(saved):
    manifest = saved / "manifest.json"
    whole = json.loads(manifest.read_text())
    for field in whole:
        manifest.write_text(json.dumps({key: value for key, value in whole.items() if key != field}))
        with pytest.raises(InputError, match=r"lacks|damaged"):
            restore(saved)
    for text in ("", "[]", '["format", "plan", "sha256", "sha256_of_manifest"]', "3", "null", '{"format": 1', "\x00"):
        manifest.write_text(text)
        with pytest.raises(InputError, match=r"manifest\.json"):
            restore(saved)


def test_a_missing_file_is_found_by_name(saved):
    for file in [file for file in saved.rglob("*") if file.is_file()]:
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match="is missing" if file.name != "manifest.json" else "holds no manifest"):
            restore(saved)
        file.write_bytes(whole)
    with pytest.raises(InputError, match=r"'nowhere' holds no manifest\.json"):
        restore("nowhere")


def test_another_format_is_refused_with_the_version_that_wrote_it(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["sha256_of_manifest"]
    manifest["format"], manifest["versions"]["jaxdq"] = 99, "7.1"
    manifest["sha256_of_manifest"] = checkpoint._digest(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"format 99 and this jaxdq reads 1 to 3.*\(7\.1\)"):
        restore(saved)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("format", "1", "format '1' and this jaxdq reads 1 to 3"),
        ("format", True, "format True"),
        ("sha256", {}, "does not list every file"),
        ("sha256", [], "does not list every file"),
        ("plan", None, "the plan in .* can't be read"),
        ("plan", {"unplanned": []}, "the plan in .* can't be read"),
    ],
)
def test_a_manifest_that_was_written_by_hand_is_refused(saved, field, value, says):
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["sha256_of_manifest"]
    manifest[field], manifest["versions"] = value, None
    manifest["sha256_of_manifest"] = checkpoint._digest(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=says):
        restore(saved)


class Golden(nn.Module):
    """What the golden checkpoints were made of, by the versions that wrote each format."""

    @nn.compact
    def __call__(self, x, t):
        h = nn.Conv(4, (3, 3), name="conv")(x) * (1 + 0.1 * jnp.asarray(t, jnp.float32))
        q, k = nn.Dense(3, name="q")(h), nn.Dense(3, name="k")(h)
        return nn.Dense(2, name="out")(nn.silu(q * k))


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.npy")))
def test_golden_checkpoints_of_every_format_are_read(name):
    qparams = restore(GOLDEN / name)
    x = np.random.default_rng(3).standard_normal((2, 4, 4, 2)).astype(np.float32)
    run = jax.jit(functools.partial(apply, Golden()))
    # 8- and 4-bit activations, weights alone, two groups; "own_groups" has a partition for each activation.
    expected = np.load(GOLDEN / f"{name}.npy")
    for t, there in zip((0, 7, 19), expected, strict=True):
        np.testing.assert_allclose(run(qparams, x, jnp.int32(t)), there, rtol=1e-5, atol=1e-6)
    assert qparams.acts.columns == qparams.plan.columns
    assert qparams.acts.num_groups == (4 if name.endswith("own_groups") else 2)


def test_an_existing_folder_is_refused_and_left_untouched(saved):
    before = contents(saved)
    with pytest.raises(InputError, match="exists already"):
        save(saved, known_quantized(Scheme(8)))
    with pytest.raises(InputError, match="overwrite is 'no'; pass True or False"):
        save(saved, known_quantized(Scheme(8)), overwrite="no")
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["quantized"]


def test_overwrite_replaces_and_leaves_nothing_behind(saved):
    qparams = known_quantized(Scheme(8, channel_axis=-1))
    save(saved, qparams, overwrite=True)
    assert_same_bits(qparams, restore(saved))
    assert [path.name for path in saved.parent.iterdir()] == ["quantized"]


def fail_to(name):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt(name)

    return fail


@pytest.mark.parametrize(
    "where", ["checkpoint.to_arrays", "checkpoint._checksums", "checkpoint._digest", "_common.folders.move_into_place"]
)
def test_an_interrupted_save_leaves_the_old_checkpoint(saved, monkeypatch, where):
    before = contents(saved)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"jaxdq.{where}", fail_to(where))
        save(saved, known_quantized(Scheme(8)), overwrite=True)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["quantized"]


def test_a_move_that_fails_half_way_puts_the_old_checkpoint_back(saved, monkeypatch):
    before, rename = contents(saved), Path.rename

    def rename_old_only(self, target):
        if self.name.endswith(".part"):
            raise OSError("disk full")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(folders, "exchange", lambda one, two: False)
        patch.setattr(Path, "rename", rename_old_only)
        save(saved, known_quantized(Scheme(8)), overwrite=True)
    assert contents(saved) == before


def test_float_params_are_not_saved_as_quantized(tmp_path):
    with pytest.raises(InputError, match="given a dict"):
        save(tmp_path / "q", KNOWN_PARAMS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_golden_codes_take_their_true_size_on_disk(tmp_path, bits):
    rng = np.random.default_rng(0)
    # 999 x 100 codes that no compressor can shorten by much: uniform over the grid.
    lo, hi = Scheme(bits).bounds
    kernel = jnp.asarray(rng.integers(lo, hi + 1, (100, 999)), jnp.float32)
    qparams = known_quantized(Scheme(8), params=KNOWN_PARAMS)
    tensor = QTensor(kernel.astype(jnp.int8), qparams.params["dense"]["kernel"].qparams, Scheme(bits))
    stored = checkpoint.to_arrays(dataclasses.replace(qparams, params={"dense": {"kernel": tensor}}))
    assert stored["params"]["dense"]["kernel"]["codes"].nbytes == -(-99_900 // 8) * bits
    save(tmp_path / "q", dataclasses.replace(qparams, params={"dense": {"kernel": tensor}}))
    size = sum(map(len, contents(tmp_path / "q").values()))
    # The rest, names and checksums and the plan, is below 20 kB; 8 bits would be 100 kB.
    assert 0.9 * 99_900 * bits / 8 * np.log2(hi - lo + 1) / bits < size < 99_900 * bits / 8 + 20_000


def test_saving_leaves_the_parameters_usable(tiny, saved):
    denoiser, qparams = tiny
    x = np.ones((1, *SHAPE), np.float32)
    run = jax.jit(lambda qparams: apply(denoiser.module, qparams, x, 3))
    np.testing.assert_array_equal(run(qparams), run(restore(saved)))


STATE = {"logits": jnp.arange(6.0).reshape(2, 3), "opt": (jnp.int32(3), [jnp.ones(2, jnp.bfloat16)])}


def test_the_state_of_a_loop_restores_bit_exact_and_is_replaced_whole(tmp_path):
    for update in (5, 6):
        state = jax.tree.map(lambda leaf, update=update: leaf + update, STATE)
        checkpoint.save_state(tmp_path / "deep" / "state", update, state)
        found, restored, _ = checkpoint.restore_state(tmp_path / "deep" / "state", STATE)
        assert found == update and jax.tree.structure(restored) == jax.tree.structure(STATE)
        for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
            assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state"]


@pytest.mark.parametrize(
    "like",
    [
        STATE | {"logits": jnp.zeros((3, 2))},
        STATE | {"logits": jnp.zeros((2, 3), jnp.int32)},
        STATE | {"more": jnp.zeros(1)},
        {"logits": STATE["logits"]},
    ],
    ids=["shape", "dtype", "more", "fewer"],
)
def test_the_state_of_another_loop_is_refused(tmp_path, like):
    checkpoint.save_state(tmp_path / "state", 1, STATE)
    with pytest.raises(InputError, match=r"remove the folder and run again"):
        checkpoint.restore_state(tmp_path / "state", like)


def test_a_state_that_is_not_there_or_torn_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        checkpoint.restore_state(tmp_path / "state", STATE)
    checkpoint.save_state(tmp_path / "state", 1, STATE)
    for file in (tmp_path / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:7])
    with pytest.raises(InputError, match=r"can't be read|is damaged"):
        checkpoint.restore_state(tmp_path / "state", STATE)


def test_overwrite_never_replaces_anything_but_a_checkpoint(tmp_path, tiny):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for path in (precious, tmp_path / "file"):
        with pytest.raises(InputError, match="something else than a checkpoint"):
            save(path, tiny[1], overwrite=True)
    with pytest.raises(InputError, match="can't write beside"):
        save(tmp_path / "file" / "below", tiny[1])
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_a_network_whose_activations_are_all_in_float(tmp_path):
    plan = toy_plan(Known(), KNOWN_PARAMS, [Rule(".*", Scheme(8, channel_axis=-1))], KNOWN_X, T0)
    calib = toy_calibration(Known(), KNOWN_PARAMS, plan, [0, 1], KNOWN_X, T0, num_groups=2)
    qparams = quantize(KNOWN_PARAMS, calib)
    assert not qparams.plan.columns
    save(tmp_path / "q", qparams)
    assert_same_bits(restore(tmp_path / "q"), qparams)
