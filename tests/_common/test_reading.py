import os

import pytest

from jaxdq import InputError
from jaxdq._common.checks import check_count
from jaxdq._common.reading import parse_json, read_json_values, read_text
from jaxdq.app.report import read_metrics
from jaxdq.models.text import read_prompts
from jaxdq.models.unet._files import read_json


def test_reads_what_is_there(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "ü"]}', encoding="utf-8")
    assert read_json_values(tmp_path / "a.json") == {"a": [1, "ü"]}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, "{", ""], ids=len)
def test_json_without_end_is_a_value_error(text):
    with pytest.raises(ValueError):  # whatever the reason, the caller's sentence says it
        parse_json(text)


def a_device(place):
    return "/dev/zero"


def a_pipe(place):
    os.mkfifo(place / "pipe")
    return place / "pipe"


def a_folder(place):
    (place / "folder").mkdir()
    return place / "folder"


def a_large_file(place):
    with open(place / "large", "wb") as file:
        file.truncate(10**11)  # takes no room
    return place / "large"


@pytest.mark.parametrize("make", [a_device, a_pipe, a_folder, a_large_file])
def test_what_has_no_end_is_told_at_once(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(InputError, match=r"can't read the prompts .*; give a text file"):
        read_prompts(path)
    (tmp_path / "config.json").symlink_to(path)
    with pytest.raises(InputError, match=r"config\.json is not readable JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "metrics.json").symlink_to(path)
    with pytest.raises(InputError, match=r"metrics\.json' can't be read"):
        read_metrics(tmp_path)


def test_the_bound_is_the_callers(tmp_path):
    (tmp_path / "a").write_text("12345")
    assert read_text(tmp_path / "a", most=5) == "12345"
    with pytest.raises(ValueError, match="5 bytes, and at most 4"):
        read_text(tmp_path / "a", most=4)


@pytest.mark.parametrize("count", [10**9, 10**30, 0, -1, 1.0, True, None])
def test_numbers_of_images_that_no_memory_holds_are_refused(count):
    with pytest.raises(InputError, match="num_images is"):
        check_count(count)
