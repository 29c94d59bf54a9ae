"""One fixed configuration for every test: the CPU, and the same examples at each run."""

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("fixed")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
