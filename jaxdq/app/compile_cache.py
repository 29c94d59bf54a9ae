"""The command line's compile cache: XLA programs of one call, kept on disk for the next.

JAX's own persistent cache, switched on for commands (`bench` excepted, which times compiling) and left alone in the
library. Whoever has set JAX's switches
(JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE) has decided already.
"""

import hashlib
import os
import platform
from pathlib import Path

from jaxdq._common.errors import InputError
from jaxdq._common.paths import user_cache

SWITCH = "JAXDQ_COMPILE_CACHE"
_SETTINGS = {
    "jax_compilation_cache_max_size": 2**30,  # bytes; the programs that were used least recently go first
    "jax_persistent_cache_min_compile_time_secs": 0.1,  # what compiles faster is as fast to compile as to read
}


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache, unless the environment says otherwise.

    A folder that can't be made or written is no error: everything is compiled, as without a cache.

    Raises:
        InputError: The switch is neither 0 nor 1.
    """
    asked = os.environ.get(SWITCH) or "1"
    if asked not in ("0", "1"):
        raise InputError(f"{SWITCH} is {asked!r}; give 0 to switch the compile cache off, or leave it out.")
    import jax

    known = jax.config.values
    decided = known["jax_compilation_cache_dir"] is not None or not known["jax_enable_compilation_cache"]
    folder = None if decided or asked == "0" else _folder()
    if folder is None:
        return
    settings = {**_SETTINGS, "jax_compilation_cache_dir": str(folder)}
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _folder() -> Path | None:
    """The cache's folder, made and without what a killed process left of a program; None where there can be none."""
    try:
        folder = user_cache() / "xla" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # the latter of a user without a home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _processor() -> str:
    """A name for what this CPU can do: programs made for another may not run here, and homes are shared."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    known = sorted({line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features")})
    return hashlib.sha256("\n".join([platform.machine(), *known]).encode()).hexdigest()[:12]
