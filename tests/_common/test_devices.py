"""Several devices: virtual ones of the CPU in a process of their own, and two processes on this machine."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import Tiny, toy_denoiser

import jaxdq
from jaxdq import InputError, ddim, recipes, sample
from jaxdq._common.devices import gather, num_devices, replicate, round_up, shard
from jaxdq.linen import shard_by_output

TESTS = Path(__file__).parents[1]
KEY = jax.random.key(0)
# Learned ranges, twice: the second time from the state on disk.
ONE_OF_TWO = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from toys import Tiny, toy_denoiser
import jaxdq
from jaxdq.calibration import RangeSettings, SearchSettings
from jaxdq.calibration.tools import loop
loop.SAVE_EVERY = 2
settings = {"search": SearchSettings(num_updates=2, moves=1), "learning": RangeSettings(num_updates=3)}
recipe = jaxdq.recipes.adpdm(8, 8, 2, **settings)
mesh = jax.make_mesh((jax.device_count(),), ("batch",))
assert mesh.size == 4
for turn in range(2):
    calib = jaxdq.calibrate(toy_denoiser(Tiny()), recipe, sampler=jaxdq.ddim(3), key=jax.random.key(0), num_images=5,
                            mesh=mesh, checkpoint_dir=sys.argv[3] + "/state")
    np.save(f"{sys.argv[3]}/{turn}_{sys.argv[2]}.npy", calib.acts.scale)
"""


def start(*command, devices):
    """A process with that many virtual devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([str(Path(jaxdq.__file__).parents[1]), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment, cwd=TESTS.parent, **both)


def finish(process):
    """What it printed."""
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    return printed


def free_address():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


@pytest.mark.slow
def test_on_eight_devices():
    file = TESTS / "on_eight_devices.py"
    printed = finish(start("-m", "pytest", "-p", "no:cacheprovider", file, devices=8))
    assert " passed" in printed or "[100%]" in printed


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_go_on_from_one_state(tmp_path):
    address = free_address()
    for process in [start("-c", ONE_OF_TWO, address, index, tmp_path, devices=2) for index in range(2)]:
        finish(process)
    search, ranges = (tmp_path / "state" / part for part in ("search_groups", "learn_ranges"))
    assert search.exists() and ranges.exists()
    settings = {"search": jaxdq.calibration.SearchSettings(num_updates=2, moves=1)}
    settings["learning"] = jaxdq.calibration.RangeSettings(num_updates=3)
    recipe = recipes.adpdm(8, 8, 2, **settings)
    one = jaxdq.calibrate(toy_denoiser(Tiny()), recipe, sampler=ddim(3), key=KEY, num_images=5)
    for turn in range(2):
        first, second = (np.load(tmp_path / f"{turn}_{index}.npy") for index in range(2))
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, one.acts.scale, rtol=1e-3)


@pytest.mark.slow
def test_the_script_saves_what_two_processes_learned(tmp_path):
    asked = [
        TESTS.parent / "scripts" / "calibrate.py",
        "digits",
        "--recipe",
        "minmax",
        "--steps",
        2,
        "--calibration-images",
        4,
    ]
    asked += ["--out", tmp_path / "q", "--coordinator", free_address(), "--num-processes", 2, "--process-id"]
    printed = [finish(process) for process in [start(*asked, index, devices=2) for index in range(2)]]
    report = json.loads(printed[0].splitlines()[-1])
    assert (report["devices"], report["processes"]) == (4, 2) and not printed[1].startswith("{")
    recipe = recipes.minmax(8, 8)
    denoiser = jaxdq.load_denoiser("digits")
    one = jaxdq.calibrate(denoiser, recipe, sampler=ddim(2), key=KEY, num_images=4)
    np.testing.assert_allclose(jaxdq.restore(tmp_path / "q").acts.scale, one.acts.scale, rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("nosuch", "neither a bundled model nor a folder called 'nosuch'"),
        ("digits --recipe foo", "there is no recipe 'foo'"),
        ("digits --weight-bits 1", "bits is 1; give a whole number from 2 to 8"),
        ("digits --steps 0", "takes 0 steps; pass a whole number of at least 1"),
        ("digits --steps 4 --groups 5", "5 groups were asked for and the sampler has 4 steps"),
        ("digits --calibration-images 0", "calibration_images is 0; give 1 to 10,000,000"),
        ("digits --seed -1", "seed is -1"),
        ("digits --process-id 0 --num-processes 2", "give all of --coordinator"),
        ("digits --coordinator a:1 --process-id 2 --num-processes 2", r"0 to N - 1"),
        ("digits --coordinator a --process-id 0 --num-processes 2", "--coordinator is 'a'; give HOST:PORT"),
    ],
)
def test_the_script_says_in_one_sentence_what_it_cannot_use(tmp_path, capsys, asked, said):
    main = runpy.run_path(str(TESTS.parent / "scripts" / "calibrate.py"))["main"]
    with pytest.raises(SystemExit) as stopped:
        main([*asked.split(), "--out", str(tmp_path / "q")])
    assert stopped.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "q").exists()


def test_without_a_mesh_nothing_moves():
    tree = {"a": np.arange(3), "b": jax.numpy.ones(2)}
    assert replicate(tree, None) is tree and gather(tree, None) is tree
    assert (num_devices(None), round_up(3, None)) == (1, 3)
    assert all(isinstance(leaf, jax.Array) for leaf in shard(tree, None).values())


def test_bad_meshes_are_refused():
    denoiser = toy_denoiser(Tiny())
    two_axes = jax.make_mesh((1, 1), ("data", "model"))
    with pytest.raises(InputError, match=r"mesh has axes \('data', 'model'\) and one axis was expected"):
        sample(denoiser, denoiser.params, sampler=ddim(2), num_images=1, key=KEY, mesh=two_axes)
    with pytest.raises(InputError, match="mesh has type str and one axis was expected"):
        jaxdq.calibrate(denoiser, recipes.minmax(), sampler=ddim(2), key=KEY, mesh="batch")
    with pytest.raises(InputError, match=r"qparams is dict; pass what jaxdq.quantize returned"):
        shard_by_output(denoiser.params, two_axes, "model")
    empty = jaxdq.QuantizedParams({}, None, jaxdq.Plan(()))
    with pytest.raises(InputError, match=r"has axes .* and not 'batch'; name one of them"):
        shard_by_output(empty, two_axes, "batch")
