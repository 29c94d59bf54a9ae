import contextlib
import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_store import FakePath
from hypothesis import given
from hypothesis import strategies as st
from toys import Tiny, tiny_quantized, toy_denoiser

import jaxdq
from jaxdq import InputError, checkpoint, recipes
from jaxdq._common.paths import is_remote, local_path, path_of
from jaxdq.app.command import main
from jaxdq.calibration import run_recipe
from jaxdq.models.unet import load_unet_folder, save_unet_folder

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A current folder, a home and a store, all of them empty."""
    for name in ("here", "home", "store"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(FakePath, "root", tmp_path / "store", raising=False)
    monkeypatch.setattr(FakePath, "is_down", False)
    return tmp_path


@pytest.fixture(scope="module")
def quantized():
    return tiny_quantized()[1]


def everything(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def bits(qparams):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(qparams)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a/b", "a/b"),
        ("a:b", "a:b"),  # no URI: no slash
        ("a/~/b", "a/~/b"),  # as in a shell
        ("C:/a", "C:/a"),  # a drive
        ("~", "{home}"),
        ("~/a", "{home}/a"),
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("FILE://localhost/tmp/a", "/tmp/a"),
        ("file:/tmp/a", "/tmp/a"),  # what pathlib makes of file:///tmp/a
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_local_paths(place, text, found, kind):
    if kind is Path and "://localhost" in text:
        pytest.skip("pathlib has made a folder of the host's name")
    assert path_of(kind(text)) == Path(found.format(home=place / "home"))


@pytest.mark.parametrize("text", ["fake://b/c", "fake:/b/c", "FAKE://b/c/", Path("fake://b/c"), FakePath("b", "c")])
def test_a_scheme_of_epath_is_its_to_read(text):
    found = path_of(text)
    assert isinstance(found, FakePath) and is_remote(found) and str(found) == "fake://b/c"


@pytest.mark.parametrize("scheme", ["gs", "s3", "az", "hf"])
def test_the_schemes_that_epath_brings_are_known(scheme):
    assert is_remote(path_of(f"{scheme}://bucket/folder")) and is_remote(path_of(Path(f"{scheme}://bucket/folder")))


REFUSED = {
    "nosuch://bucket/c": "has the scheme 'nosuch'",
    "http://host/c": "has the scheme 'http'",
    "memory://c": "has the scheme 'memory'",
    "gs://": "names no folder",
    "gs:": "names no folder",
    "file://host/c": "names no folder of this machine",
    "file:///": "names no folder of this machine",
    "~nosuchuser/c": "a user who has no home here",
    "": r"give text or a pathlib\.Path",
    "a\0b": r"give text or a pathlib\.Path",
    "a" * 5000: "can't be a path here",
}
refused = pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=map(repr, range(len(REFUSED))))


@refused
def test_what_is_no_path_is_refused_by_every_function_before_any_work(place, quantized, text, said):
    denoiser = toy_denoiser(Tiny())
    calls = [
        lambda: jaxdq.save(text, quantized),
        lambda: jaxdq.save(text, quantized, overwrite=True),
        lambda: jaxdq.restore(text),
        lambda: checkpoint.check_can_save(text),
        lambda: run_recipe(denoiser, recipes.minmax(), sampler=jaxdq.ddim(2), key=KEY, checkpoint_dir=text),
        lambda: jaxdq.load_denoiser(text),
        lambda: load_unet_folder(text),
        lambda: save_unet_folder(text, {}, {}, {}),
    ]
    for call in calls:
        with pytest.raises(InputError, match=said):
            call()
    assert not everything(place / "here") | everything(place / "store")


@pytest.mark.parametrize("value", [None, 3, b"a", ["a"]])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(InputError, match=r"give text or a pathlib\.Path"):
        path_of(value)


@given(st.text(max_size=30))
def test_property_no_text_makes_a_folder_named_like_a_scheme_or_a_home(text):
    with contextlib.suppress(InputError):
        found = path_of(text)
        first = found.parts[0] if isinstance(found, Path) and found.parts else ""
        assert not first.startswith("~") and not (first.endswith(":") and len(first) > 2 and "/" in text)


COMMANDS = {
    "quantize": ["quantize", "digits", "--recipe", "minmax", "--out"],
    "sample": ["sample"],
    "evaluate": ["evaluate"],
    "inspect": ["inspect"],
    "compare": ["compare"],
    "bench": ["bench"],
    "quantize a model": ["quantize"],
    "prompts": ["quantize", "digits", "--prompts"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("text", ["gs://bucket/c", "nosuch://b/c", "~nosuchuser/c", "fake://b/c"])
def test_every_command_refuses_in_one_sentence_what_it_can_not_read_or_write(place, command, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, text])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and printed.err.startswith("jaxdq: ") and not printed.out
    assert len(printed.err.splitlines()) == 1
    assert not everything(place / "here") | everything(place / "store")


def test_a_home_and_a_file_uri_are_where_they_say(place, quantized):
    jaxdq.save("~/q", quantized)
    jaxdq.save(f"file://{place}/store/q", quantized)
    for path in ("~/q", place / "home" / "q", Path("~/q"), (place / "store" / "q").as_uri()):
        assert bits(jaxdq.restore(path)) == bits(quantized)
    assert not everything(place / "here")


def test_a_remote_checkpoint_has_the_files_and_the_bits_of_a_local_one(place, quantized, capsys):
    jaxdq.save("fake://bucket/deep/q", quantized)
    jaxdq.save("q", quantized)
    assert bits(jaxdq.restore("fake://bucket/deep/q")) == bits(jaxdq.restore("q")) == bits(quantized)
    stored = everything(place / "store" / "bucket" / "deep")
    assert {"q", "q/manifest.json", "q/arrays"} <= stored and not [name for name in stored if name.startswith(".")]
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", "fake://bucket/deep/q"])
    assert capsys.readouterr().out.strip() == str(quantized.plan).strip()
    with pytest.raises(InputError, match="fake://bucket/deep/q' exists already"):
        jaxdq.save("fake://bucket/deep/q", quantized)
    other = dataclasses.replace(quantized, acts=jax.tree.map(lambda leaf: 2 * leaf, quantized.acts))
    jaxdq.save("fake://bucket/deep/q", other, overwrite=True)
    assert bits(jaxdq.restore("fake://bucket/deep/q")) == bits(other)


def test_remote_damage_is_found_and_other_files_are_kept(place, quantized):
    with pytest.raises(InputError, match=r"fake://bucket/q' holds no manifest.json"):
        jaxdq.restore("fake://bucket/q")
    precious = place / "store" / "bucket" / "thesis"
    precious.mkdir(parents=True)
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="something else than a checkpoint"):
        jaxdq.save("fake://bucket/thesis", quantized, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"
    jaxdq.save("fake://bucket/q", quantized)
    file = next(file for file in (place / "store" / "bucket" / "q" / "arrays").rglob("*") if file.is_file())
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"fake://bucket/q/arrays/.*is damaged"):
        jaxdq.restore("fake://bucket/q")


def test_a_store_that_does_not_answer_is_named_and_nothing_is_left_behind(place, quantized, monkeypatch):
    copied = []

    def copy_two(source, target):
        copied.append(target)
        if len(copied) > 2:
            raise PermissionError("no quota.\nmore")
        target.here.write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr("jaxdq._common.paths.copy_file", copy_two)
        with pytest.raises(InputError, match=r"'fake://b/q' can't be read or written \(PermissionError: no quota\)"):
            jaxdq.save("fake://b/q", quantized)
    assert not (place / "store" / "b" / "q").exists()
    monkeypatch.setattr(FakePath, "is_down", True)
    calls = [
        lambda: jaxdq.save("fake://b/q", quantized),
        lambda: jaxdq.restore("fake://b/q"),
        lambda: run_recipe(
            toy_denoiser(Tiny()), recipes.minmax(), sampler=jaxdq.ddim(2), key=KEY, checkpoint_dir="fake://b/q"
        ),
        lambda: checkpoint.save_state("fake://b/s", 1, {"a": np.ones(2)}),
        lambda: checkpoint.restore_state("fake://b/s", {"a": np.ones(2)}),
        lambda: checkpoint.has_state("fake://b/s"),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"ConnectionError: the store does not answer\)"):
            call()
    assert everything(place / "here") == set() and everything(place / "store") <= {"b"}


def test_the_state_of_a_loop_is_kept_in_a_store_and_replaced_in_one_move(place):
    assert not checkpoint.has_state("fake://b/run/0/state")
    for update in (1, 2):
        checkpoint.save_state("fake://b/run/0/state", update, {"a": np.full(3, update, np.float32)})
        found, state, _ = checkpoint.restore_state("fake://b/run/0/state", {"a": np.zeros(3, np.float32)})
        assert found == update and np.asarray(state["a"]).tolist() == [update] * 3
    assert checkpoint.has_state("fake://b/run/0/state")
    assert everything(place / "store" / "b") == {"run", "run/0", "run/0/state"}
    (place / "store" / "b" / "run" / "0" / "state").write_bytes(b"torn")
    with pytest.raises(InputError, match="fake://b/run/0/state"):
        checkpoint.restore_state("fake://b/run/0/state", {"a": np.zeros(3, np.float32)})


def test_a_calibration_keeps_its_mark_in_a_store(place):
    denoiser = toy_denoiser(Tiny())
    kept = {"sampler": jaxdq.ddim(2), "num_images": 2, "checkpoint_dir": "fake://b/c"}
    for _ in range(2):
        jaxdq.calibrate(denoiser, recipes.minmax(), key=KEY, **kept)
    assert everything(place / "store") == {"b", "b/c", "b/c/run.json"} and not everything(place / "here")
    with pytest.raises(InputError, match="'fake://b/c' holds the state of another run"):
        jaxdq.calibrate(denoiser, recipes.minmax(), key=jax.random.key(1), **kept)


def test_files_in_place_of_folders_are_refused_before_any_work(place, quantized, monkeypatch):
    (place / "here" / "file").write_text("x")
    monkeypatch.setattr(checkpoint, "to_arrays", None)  # nothing gets so far
    for path in ("file", "file/below/deep", "."):
        for overwrite in (False, True):
            with pytest.raises(InputError):
                jaxdq.save(path, quantized, overwrite=overwrite)
        with pytest.raises(InputError):
            jaxdq.restore(path)
    with pytest.raises(InputError, match="can't hold what a calibration learns"):
        run_recipe(toy_denoiser(Tiny()), recipes.minmax(), sampler=jaxdq.ddim(2), key=KEY, checkpoint_dir="file")
    with pytest.raises(InputError, match="not on this machine"):
        local_path("fake://b")
    assert everything(place / "here") == {"file"} and os.fspath(path_of("file")) == "file"
