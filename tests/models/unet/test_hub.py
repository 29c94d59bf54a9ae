import shutil
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest

from jaxdq._common.errors import InputError
from jaxdq.models.unet import load_denoiser, model_folder, without_network
from jaxdq.models.unet._folder import _BUNDLED
from jaxdq.models.unet._hub import is_hub_id

FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that has `digits`, with a pickle and a VAE beside it; it notes what is fetched."""
    monkeypatch.chdir(tmp_path)
    fetched = []

    def snapshot_download(hub_id, allow_patterns, local_files_only=False):
        if local_files_only and not (tmp_path / "cache").exists():
            raise FileNotFoundError("not in the cache")
        if hub_id != "someone/digits":
            raise ConnectionError("no route to host.\nsecond line")
        for file in FILES:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                fetched.append(file)
                target = tmp_path / "cache" / "0123abc" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(_BUNDLED / "digits" / file, target)
        return str(tmp_path / "cache" / "0123abc")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return fetched


def test_a_hub_id_downloads_the_configurations_and_one_file_of_weights(hub):
    denoiser = load_denoiser("someone/digits")
    assert (denoiser.name, denoiser.shape) == ("digits", (16, 16, 1))
    assert sorted(hub) == [
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]


def test_what_someone_elses_file_names_is_not_fetched_from_the_network(hub):
    with without_network():
        with pytest.raises(InputError, match=r"names the model 'someone/digits', which is neither .*--model"):
            load_denoiser("someone/digits")
    assert not hub
    load_denoiser("someone/digits")  # named by the person, and in the cache from then on
    with without_network():
        assert load_denoiser("someone/digits").name == "digits"


def test_without_weights_only_the_configurations_are_downloaded(hub):
    load_denoiser("someone/digits", weights=False)
    assert sorted(hub) == ["scheduler/scheduler_config.json", "unet/config.json"]


def test_a_folder_goes_before_the_hub(hub, tmp_path):
    shutil.copytree(_BUNDLED / "digits", tmp_path / "someone" / "digits")
    assert load_denoiser("someone/digits").name == "digits"
    assert not hub


def test_no_network_is_one_sentence(hub):
    message = r"no folder 'no/model'.*\(ConnectionError: no route to host\); check"
    with pytest.raises(InputError, match=message) as caught:
        load_denoiser("no/model")
    assert "\n" not in str(caught.value)


def test_no_client_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="takes huggingface_hub, which is not installed; pip install huggingface_hub"):
        load_denoiser("someone/digits")


@pytest.mark.parametrize("name", ["digits", "/models/mine", "./models/mine", "../mine", "a/b/c", "with space/model"])
def test_paths_are_no_hub_ids(name):
    assert not is_hub_id(name)


def test_other_parts_are_downloaded_when_they_are_asked_for_one_file_of_weights_each(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    files = [
        *("unet/config.json", "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt"),
        *(
            "text_encoder/flax_model.msgpack",
            "text_encoder/pytorch_model.bin",
            "tokenizer/vocab.json",
            "vae/config.json",
        ),
        *("vae/diffusion_pytorch_model.bin", "vae/diffusion_flax_model.msgpack", "safety_checker/config.json"),
    ]
    fetched = set()

    def snapshot_download(hub_id, allow_patterns):
        for file in files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "cache" / file).touch()
                fetched.add(file)
        return str(tmp_path / "cache")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert model_folder("someone/model", ("tokenizer", "text_encoder", "text_encoder_2")) == tmp_path / "cache"
    text = {
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
    }
    assert fetched == text
    model_folder("someone/model", ("vae",))
    assert fetched == text | {"vae/config.json", "vae/diffusion_flax_model.msgpack"}


def test_the_whole_folder_of_a_model_is_found_from_its_unet():
    root = _BUNDLED / "digits"
    assert model_folder("digits", ()) == model_folder(root, ()) == model_folder(root / "unet", ()) == root.resolve()


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """A Hub of one model, whose files the test writes."""
    monkeypatch.chdir(tmp_path)
    files = {}

    def snapshot_download(hub_id, allow_patterns):
        for file, content in files.items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "cache" / file).write_bytes(content)
        (tmp_path / "cache").mkdir(exist_ok=True)
        return str(tmp_path / "cache")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return files


def test_a_transformer_pipeline_on_the_hub_is_told_what_it_is(shelf):
    shelf["transformer/config.json"] = b'{"_class_name": "SD3Transformer2DModel"}'
    shelf["scheduler/scheduler_config.json"] = b'{"_class_name": "FlowMatchEulerDiscreteScheduler"}'
    with pytest.raises(InputError, match=r"network is in transformer \(SD3Transformer2DModel\), which is no UNet"):
        load_denoiser("someone/model")


@pytest.mark.parametrize("variant", ["fp16", "ema", "non_ema"])
def test_any_variant_is_downloaded(shelf, variant):
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        shelf[file] = (_BUNDLED / "digits" / file).read_bytes()
    weights = (_BUNDLED / "digits" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    shelf[f"unet/diffusion_pytorch_model.{variant}.safetensors"] = weights
    assert load_denoiser("someone/model").shape == (16, 16, 1)
