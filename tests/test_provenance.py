import dataclasses

import jax.numpy as jnp
import pytest
from scripts_by_name import script
from toys import toy_denoiser

provenance = script("provenance")

SOURCE = '''"""What it does."""
RATE = 0.1  # of Adam


def double(x):
    """Twice x."""
    return 2 * x
'''


def digest_of(tmp_path, source, name="part/one.py"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(source)
    return provenance.digest_of_sources(tmp_path, tmp_path.rglob("*.py"))


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""What it does."""\n', "", True),
        ("Twice x.", "Two times x, as every caller expects.", True),
        ('    """Twice x."""\n', '    "Twice x."\n    # or so\n', True),
        ("  # of Adam", "", True),
        ("0.1", "1e-1", True),
        ("2 * x", "(2 *\n            x)", True),
        ("0.1", "0.2", False),
        ("2 * x", "x * 2", False),
        ("return 2", 'label = "Twice x."\n    return 2', False),
        ("double(x)", "double(x, *, by=2)", False),
    ],
)
def test_words_leave_a_digest_as_it_is_and_code_does_not(tmp_path, before, after, same):
    assert before in SOURCE
    digest = digest_of(tmp_path, SOURCE)
    assert (digest == digest_of(tmp_path, SOURCE.replace(before, after))) == same


def test_a_digest_is_of_every_module_below_and_of_where_it_stands(tmp_path):
    digests = [digest_of(tmp_path, SOURCE), digest_of(tmp_path, "", "part/two.py")]
    (tmp_path / "part" / "two.py").rename(tmp_path / "part" / "three.py")
    digests.append(provenance.digest_of_sources(tmp_path, tmp_path.rglob("*.py")))
    assert len(set(digests)) == 3


PACKAGE = {
    "house/__init__.py": '"""Hands on."""\nfrom house import parts as parts\nfrom house.parts import used as used\n',
    "house/parts/__init__.py": "".join(
        f"from house.parts._{name} import {name} as {name}\n" for name in ("used", "other")
    ),
    "house/parts/_used.py": "from house.low import base\ndef used(): return base()\n",
    "house/parts/_other.py": "def other(): pass\n",
    "house/low.py": "import numpy\ndef base(): return 1\n",
    "scripts/beside.py": "LEFT = 1\n",
    "scripts/rows.py": "from beside import LEFT\n",
}
REACHED = {"house/parts/_used.py", "house/low.py"}


@pytest.mark.parametrize(
    ("source", "reached"),
    [
        ("from house.parts import used", REACHED),
        ("from house import used", REACHED),
        ("import house\nhouse.used()", REACHED),
        ("from house import parts\nparts.used()", REACHED),
        ("import house.parts\nhouse.parts.used()", REACHED),
        ("def late():\n    from house.parts import other", {"house/parts/_other.py"}),
        ("from house import low", {"house/low.py"}),
        ("import numpy", set()),
    ],
)
def test_sources_are_those_that_a_script_reaches(tmp_path, source, reached):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    rows = tmp_path / "scripts" / "rows.py"
    rows.write_text(f"{rows.read_text()}{source}\n")
    found = {file.relative_to(tmp_path).as_posix() for file in provenance.sources_behind(tmp_path, rows)}
    assert found == {"scripts/rows.py", "scripts/beside.py", *reached}


def test_a_source_that_was_moved_does_not_drop_out_silently(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        provenance.sources_behind(tmp_path, tmp_path / "absent.py")


def test_a_model_that_was_trained_again_has_another_digest():
    denoiser = toy_denoiser()
    same = dataclasses.replace(denoiser, name="another name", params=dict(denoiser.params))
    assert provenance.digest_of_model(same) == provenance.digest_of_model(denoiser)
    path = next(iter(denoiser.params))
    trained = {**denoiser.params, path: {name: leaf + 1e-3 for name, leaf in denoiser.params[path].items()}}
    schedule = dataclasses.replace(denoiser.schedule, clip_range=2.0)
    renamed = {**denoiser.params, "extra": {"bias": jnp.zeros(1)}}
    others = [
        dataclasses.replace(denoiser, **change)
        for change in (
            {"params": trained},
            {"schedule": schedule},
            {"params": renamed},
            {"variables": {"batch_stats": {"mean": jnp.ones(1)}}},
        )
    ]
    assert len({provenance.digest_of_model(found) for found in (denoiser, *others)}) == 5
