"""The TPU compiler on a machine without a TPU: workers that compile, and a cache of their answers."""

import concurrent.futures
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from jaxdq._common.errors import InputError
from jaxdq._common.paths import user_cache
from jaxdq._common.progress import track
from jaxdq.cost._chips import Chip
from jaxdq.cost._program import FRAME, Program, read_program

NEEDS = ("libtpu", "flatbuffers")
_FORMAT = 1  # of what is kept; a new one where `Compiled` or `read_program` changes
_LIMIT_S, _LIMIT_S_UNPROFILED = 45.0, 900.0  # for one program; some keep the profiler busy for hours
_PROFILE = "--xla_jf_dump_static_llo_profile_to="
_FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")  # the user's own, which change what the compiler makes
_OF_THE_HOST = ("--xla_force_host", "--xla_dump")  # these don't


class Compiled(NamedTuple):
    """What the compiler made of one program.

    Attributes:
        program: What its text says.
        temp_bytes: Bytes of buffers in HBM beside arguments and results.
        code_bytes: Bytes of the program.
        seconds: Seconds to compile.
    """

    program: Program
    temp_bytes: int
    code_bytes: int
    seconds: float


def cache_folder() -> Path:
    """Where answers of the compiler are kept."""
    return user_cache() / "compiled"


def check_installed() -> None:
    """Refuses in one sentence where the compiler is not installed."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and the TPU's compiler is "
            f"asked through them; pip install 'jaxdq[tpu-model]' (no TPU is needed)."
        )


def compile_for(
    programs: Sequence[export.Exported],
    chip: Chip,
    *,
    profile: bool = True,
    limit_s: float = _LIMIT_S,
    jobs: int | None = None,
) -> list[Compiled]:
    """Compiles each program for a chip and reads what became of it; what was asked before is read from disk.

    Args:
        programs: Exported for the platform "tpu".
        chip: Chip to compile for.
        profile: Simulate the final schedule. Where the profiler gives up on a program, the cycles are the heuristic's.
        limit_s: Seconds that the profiler has for one program.
        jobs: Compilers at a time; None is one for each processor.

    Raises:
        InputError: The compiler is not installed, or refuses a program.
    """
    check_installed()
    local, jobs = threading.local(), jobs or os.cpu_count() or 1
    workers: list[_Worker] = []

    def ask(program: export.Exported) -> Compiled:
        kept = cache_folder() / f"{_key(program, chip, profile, limit_s)}.json"
        if (answer := _read(kept)) is not None:
            return answer
        if not hasattr(local, "worker"):
            local.worker = _Worker(chip, limit_s)
            workers.append(local.worker)
        answer = local.worker.compiled(program, profile)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}.{threading.get_ident()}.part")
        part.write_text(json.dumps(answer))
        part.replace(kept)
        return answer

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(ask, program) for program in programs]
        try:
            for future in track(futures, f"compile for {chip.name}"):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            for worker in workers:
                worker.stop()
    return [future.result() for future in futures]


def export_framed(function: Callable, inputs: tuple, params: Any = ()) -> export.Exported:
    """`function(inputs, params)` as a program for a TPU that is priced as a part of a larger one.

    It stands between barriers, so that its inputs and its result, one array, are values that others make and take, as
    they are in a network; what stands around the barriers is not counted. The params stand behind the first barrier
    too: in a network they come from memory while the layer before is at work, and a program that began with them would
    wait a thousand cycles for each.

    Args:
        function: Function of a tuple of arrays and a pytree.
        inputs: Arrays or shapes.
        params: Pytree of arrays or shapes.
    """
    leaves, tree = jax.tree.flatten(params)  # exported functions know no types but those of JAX

    def framed(inputs: tuple, *leaves: jax.Array) -> jax.Array:
        with jax.named_scope(FRAME):
            other = tuple(x + 1 if x.dtype == jnp.int8 else x * jnp.asarray(1.5, x.dtype) for x in inputs)
        inputs, leaves = jax.lax.optimization_barrier((other, leaves))  # what it leaves to do to the params is counted
        out = jax.lax.optimization_barrier(function(inputs, jax.tree.unflatten(tree, leaves)))
        with jax.named_scope(FRAME):
            return out + jnp.asarray(1, out.dtype)

    return export.export(jax.jit(framed), platforms=["tpu"])(inputs, *leaves)


class _Worker:
    """One compiler: a process with the profiler, and one without for what that gives up on, started when needed."""

    def __init__(self, chip: Chip, limit_s: float) -> None:
        self.chip, self.limit_s = chip, limit_s
        self.processes: dict[bool, subprocess.Popen] = {}
        self.stopped = False
        self.folder = tempfile.TemporaryDirectory(prefix="jaxdq-", ignore_cleanup_errors=True)

    def compiled(self, program: export.Exported, profile: bool) -> Compiled:
        frame = bytes(program.serialize())
        answer = self._ask(frame, profile)
        if answer is None and profile and not self.stopped:
            answer = self._ask(frame, False)
        if answer is None or "error" in answer:
            why = "it ended without a word" if answer is None else answer["error"]
            flags = "".join(f"; it was given {flags}" for flags in _flags())
            raise InputError(f"the compiler for {self.chip.name} refused a program: {why}{flags}")
        return Compiled(read_program(answer["hlo"]), answer["temp_bytes"], answer["code_bytes"], answer["seconds"])

    def _ask(self, frame: bytes, profile: bool) -> dict[str, Any] | None:
        """The worker's answer; None if it died or took too long."""
        if profile not in self.processes:
            self.processes[profile] = self._started(profile)
        process = self.processes[profile]
        assert process.stdin is not None and process.stdout is not None
        alarm = threading.Timer(self.limit_s if profile else _LIMIT_S_UNPROFILED, process.kill)
        alarm.start()
        try:
            process.stdin.write(len(frame).to_bytes(8, "big") + frame)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            alarm.cancel()
        if not line:
            process.wait()
            self.processes.pop(profile, None)
            return None
        return json.loads(line)

    def _started(self, profile: bool) -> subprocess.Popen:
        # The flag makes the compiler simulate its schedule; the files that it writes too are of no use.
        given = os.environ.get("LIBTPU_INIT_ARGS", "")
        flags = {"LIBTPU_INIT_ARGS": f"{given} {_PROFILE}{self.folder.name}".strip()} if profile else {}
        own = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu", **flags}
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_worker.py")), self.chip.topology],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder.name,
            env=os.environ | own,
            start_new_session=True,  # an interrupt is for the parent, which stops its workers
        )

    def stop(self) -> None:
        self.stopped = True
        for process in list(self.processes.values()):
            process.kill()
            process.wait()
        self.folder.cleanup()


def _key(program: export.Exported, chip: Chip, profile: bool, limit_s: float) -> str:
    versions = [importlib.metadata.version(name) for name in ("libtpu", "jax")]
    # Without the places in the source that each operation came from: the same program elsewhere is the same program.
    text = re.sub(r"^#loc.*\n?|\bloc\(#?[^()]*\)", "", program.mlir_module(), flags=re.MULTILINE)
    text += "" if FRAME in program.mlir_module() else " without a frame"  # which is known by its place alone
    patience = () if limit_s == _LIMIT_S else (f"{limit_s} s",)  # whoever waits longer may hear more
    parts = (str(_FORMAT), chip.topology, str(profile), *patience, *_flags(), *versions, text)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


def _flags() -> list[str]:
    """The compiler's flags that the user has set, with the variable's name before them."""
    words = {name: os.environ.get(name, "").split() for name in _FLAGS}
    kept = {name: [word for word in each if not word.startswith(_OF_THE_HOST)] for name, each in words.items()}
    return [" ".join((f"{name}:", *each)) for name, each in kept.items() if each]


def _read(path: Path) -> Compiled | None:
    """What was kept; None where nothing was, or something that can't be read."""
    try:
        program, *rest = json.loads(path.read_text())
        return Compiled(Program(*program), *rest)
    except (OSError, ValueError, TypeError):
        return None
