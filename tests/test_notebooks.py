"""The notebooks: of one form, and every cell of them runs, with small settings."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdq

FOLDER = Path(__file__).parents[1] / "colab"
NOTEBOOKS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.ipynb"))}
# The cells in one namespace, in order: no cell uses magics, so no kernel is needed. Warnings are errors, as in all
# tests, but for those that pyproject.toml lets pass.
RUN = """
import json, sys, warnings

warnings.simplefilter("error")
warnings.simplefilter("ignore", ResourceWarning)
for module in ("diffusers", "orbax"):
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)
warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
"""

every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def cells_of(name, cell_type):
    return ["".join(cell["source"]) for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == cell_type]


def test_there_are_four():
    assert [name[:2] for name in NOTEBOOKS] == ["00", "01", "02", "03"]


@every_notebook
def test_is_a_notebook_without_outputs(name):
    notebook = NOTEBOOKS[name]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None]


@every_notebook
def test_the_first_cell_says_where_how_long_and_what(name):
    assert NOTEBOOKS[name]["cells"][0]["cell_type"] == "markdown"
    first = cells_of(name, "markdown")[0]
    assert first.startswith("# ")
    for asked in ("**Hardware:**", "**Minutes:**", "**What to expect:**"):
        assert asked in first


@every_notebook
def test_installs_only_what_is_missing(name):
    install = cells_of(name, "code")[0]
    assert "find_spec" in install and '"pip", "install"' in install


@every_notebook
def test_every_section_has_an_assert(name):
    sections = {}
    for cell in NOTEBOOKS[name]["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and source.startswith("## "):
            sections[source.splitlines()[0]] = ""
        elif cell["cell_type"] == "code" and sections:
            sections[list(sections)[-1]] += source
    assert len(sections) >= 5
    assert not [title for title, source in sections.items() if source and not re.search("^ *assert ", source, re.M)]


@every_notebook
def test_names_no_path_of_one_machine_and_no_address(name):
    text = "\n".join(cells_of(name, "code") + cells_of(name, "markdown"))
    assert not re.search(r"(?<![\w.)])/(home|work|tmp|root|content|Users|mnt)\b|https?://|[A-Z]:\\", text)


@pytest.mark.slow
@every_notebook
def test_runs_with_small_settings(name, tmp_path):
    path = os.pathsep.join([str(Path(jaxdq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    settings = {"JAXDQ_NOTEBOOK_SMALL": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", RUN, str(FOLDER / f"{name}.ipynb")]
    run = subprocess.run(
        command, env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True, timeout=1200
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert not list(tmp_path.iterdir()), "a notebook leaves nothing behind"
