"""One fixed configuration for every test: the CPU, programs compiled once, and the same examples at each run."""

import gc
import os
import shutil
from pathlib import Path

# Most of a test run is XLA compiling small programs, so what was compiled is kept for the next run. Set before JAX is
# imported and in the environment, for the processes that tests start as well; what the user has set stays.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("fixed")

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
CACHE_BYTES = 1 << 30


def pytest_sessionstart(session: pytest.Session) -> None:
    """Empties a cache that has grown large; JAX's own bound would look at every file of it at each write."""
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and CACHE.is_dir() and sum(file.stat().st_size for file in CACHE.iterdir()) > CACHE_BYTES:
        shutil.rmtree(CACHE)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: Python's collector need not go through them with every program's garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A program that runs once need not be fast."""
    as_for_users = item.get_closest_marker("slow") or item.get_closest_marker("optimized")
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        jax.config.update("jax_disable_most_optimizations", not as_for_users)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
