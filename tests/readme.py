"""The README's code blocks, for tests that run them as written."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(name: str) -> str:
    """The code block that follows `<!-- name -->`."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no block '{name}'"
    return found.group(1)
