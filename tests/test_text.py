import pytest

from jaxdq import InputError
from jaxdq.text import check_prompts, read_prompts


def test_prompts_are_lines_and_empty_ones_are_ignored(tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa cat\n\n  a dog, \r\n \t\nein Fuß", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ["a cat", "a dog,", "ein Fuß"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "are empty"), (b" \n\n", "are empty"), (b"\xff\xfe\x00", "UTF-8")]
)
def test_refuses_files_without_prompts(tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "prompts.txt")


def test_refuses_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(InputError, match="can't read the prompts"):
            read_prompts(path)


@pytest.mark.parametrize("prompts", ["a cat", [], [1], None])
def test_refuses_what_is_no_list_of_texts(prompts):
    with pytest.raises(InputError, match="pass a list of one text"):
        check_prompts(prompts)
