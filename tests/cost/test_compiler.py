import importlib.util
import io
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jaxdq._common.errors import InputError
from jaxdq.cost import CHIPS, ExecutionMode, check_installed, chip_of, compile_for, lowered_call, network_of
from jaxdq.cost import _compiler as compiler
from jaxdq.grid import Scheme
from jaxdq.linen import Rule, find_sites, make_plan
from jaxdq.models.unet import load_denoiser

pytestmark = pytest.mark.optimized

V5E = CHIPS["v5e"]


def exported(function, *shapes):
    return export.export(jax.jit(function), platforms=["tpu"])(*shapes)


def square(x):
    return x @ x


def test_unknown_chips_are_refused_with_those_there_are():
    assert chip_of("tpu:v5e") is V5E
    with pytest.raises(
        InputError, match="'tpu:v9' is no platform of jaxdq; give cpu, gpu or tpu to measure here, or tpu:v5e, tpu:v6e"
    ):
        chip_of("tpu:v9")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu and flatbuffers are not installed.*pip install 'jaxdq\[tpu-model\]'"):
        check_installed()


class Fake:
    """A compiler that counts how often it is asked."""

    asked = 0

    def __init__(self, chip, limit_s):
        pass

    def compiled(self, program, profile):
        Fake.asked += 1
        return compiler.Compiled(compiler.read_program(""), 1, 2, 3.0)

    def stop(self):
        pass


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXDQ_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "check_installed", lambda: None)
    for name in compiler._FLAGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiler, "_Worker", Fake)
    monkeypatch.setattr(compiler.importlib.metadata, "version", lambda name: "1")
    Fake.asked = 0
    return tmp_path


def test_answers_are_kept_by_program_chip_and_profile_and_a_damaged_one_is_asked_again(fake):
    program = exported(square, jax.ShapeDtypeStruct((4, 4), jnp.float32))
    first = compile_for([program], V5E)
    assert compile_for([program], V5E) == first
    assert Fake.asked == 1
    compile_for([program], V5E, profile=False)
    compile_for([program], CHIPS["v6e"])
    compile_for([exported(square, jax.ShapeDtypeStruct((8, 8), jnp.float32))], V5E)
    assert Fake.asked == 4
    for kept in (fake / "compiled").iterdir():
        kept.write_text(json.dumps([1]))
    assert compile_for([program], V5E) == first
    assert Fake.asked == 5


def test_who_waits_longer_for_the_profiler_asks_again(fake):
    program = exported(square, jax.ShapeDtypeStruct((4, 4), jnp.float32))
    for _ in range(2):
        compile_for([program], V5E)
        compile_for([program], V5E, limit_s=300.0)
    assert Fake.asked == 2


def test_who_gives_the_compiler_flags_asks_again(fake, monkeypatch):
    program = exported(square, jax.ShapeDtypeStruct((4, 4), jnp.float32))
    compile_for([program], V5E)
    for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
        monkeypatch.setenv(name, "--xla_some=1 --xla_dump_to=here")
        compile_for([program], V5E)
        monkeypatch.setenv(name, "--xla_force_host_platform_device_count=8")  # which is nothing to a TPU
        compile_for([program], V5E)
        monkeypatch.delenv(name)
    assert Fake.asked == 3


def test_the_compiler_gets_the_flags_and_they_are_named_where_it_refuses(monkeypatch):
    given = []

    class Process:
        stdin, stdout, kill, wait = io.BytesIO(), io.BytesIO(), lambda self: None, lambda self: None

        def __init__(self, *args, env, **kwargs):
            given.append(env.get("LIBTPU_INIT_ARGS", ""))

    monkeypatch.setattr(compiler.subprocess, "Popen", Process)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_some=1")
    monkeypatch.setenv("XLA_FLAGS", "")
    worker = compiler._Worker(V5E, 1.0)
    program = SimpleNamespace(serialize=lambda: b"")
    with pytest.raises(InputError, match=r"ended without a word; it was given LIBTPU_INIT_ARGS: --xla_some=1$"):
        worker.compiled(program, profile=True)
    profiled, plain = given
    assert profiled.startswith(f"--xla_some=1 {compiler._PROFILE}") and plain == "--xla_some=1"


@pytest.mark.slow
def test_an_answer_is_found_again_whoever_asks(fake):
    def deeper(depth):
        jax.clear_caches()
        x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
        return deeper(depth - 1) if depth else compiler.export_framed(lambda inputs, _: square(*inputs), (x,))

    compile_for([deeper(0)], V5E)
    compile_for([deeper(5)], V5E)
    assert Fake.asked == 1


def test_params_come_while_what_stands_before_the_call_is_at_work():
    """They stand behind the barrier of the inputs: a program would wait for what it reads first."""
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 4), (4,)))
    text = compiler.export_framed(lambda inputs, p: inputs[0] * p["w"] + p["b"], (x,), {"w": w, "b": w}).mlir_module()
    first, *_ = re.findall(r"stablehlo.optimization_barrier (.*) :", text)
    assert len(first.split(",")) == 3


def test_a_dead_worker_is_asked_again_without_the_profiler(monkeypatch):
    worker = compiler._Worker(V5E, 45.0)
    asked = []

    def ask(frame, profile):
        asked.append(profile)
        return None if profile else {"hlo": "", "temp_bytes": 1, "code_bytes": 2, "seconds": 3.0}

    monkeypatch.setattr(worker, "_ask", ask)
    program = SimpleNamespace(serialize=lambda: b"any")
    assert worker.compiled(program, True).temp_bytes == 1
    assert asked == [True, False]
    monkeypatch.setattr(worker, "_ask", lambda frame, profile: {"error": "no such op"})
    with pytest.raises(InputError, match="the compiler for v5e refused a program: no such op"):
        worker.compiled(program, True)


@pytest.mark.parametrize("act", ["static", "dynamic", "float"])
@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_units_of_a_network_hold_what_their_variant_says(act, bits):
    denoiser = load_denoiser("digits")
    x, t = jnp.zeros((2, *denoiser.shape)), jnp.int32(0)
    sites = find_sites(denoiser.module, denoiser.params, x, t)
    plan = make_plan([Rule(".*", Scheme(bits, channel_axis=-1), Scheme(8, symmetric=False))], sites)
    mode = ExecutionMode(jnp.float32, quantized=True, act=act)
    for call in network_of(denoiser.module, denoiser.params, x, t).calls[2:12]:
        site = plan.by_path.get(call.path)
        text = lowered_call(call, mode, site).exported.mlir_module()
        contracted = [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)", line)]
        integers = [line for line in contracted if re.search(r"xi8>, tensor<\S*xi8>\) -> tensor<\S*xi32>", line)]
        assert integers == (contracted if site is not None and act != "float" else [])
        assert (f"xi{bits}>" in text) == (site is not None)
