"""A store elsewhere: the scheme fake:// of etils.epath, whose files lie below a folder of the test."""

import os
import shutil
from pathlib import Path
from typing import ClassVar

from etils import epath


@epath.register_path_cls("fake://")
class FakePath(epath.Path):
    """A path of a store of objects, with no more than epath's methods: folders come and go with their files."""

    root: ClassVar[Path]
    is_down: ClassVar[bool] = False

    def __new__(cls, *parts):
        text = "/".join(map(os.fspath, parts)).removeprefix("fake://")
        made = object.__new__(cls)
        made.key = "/".join(part for part in text.split("/") if part)
        return made

    def __init__(self, *parts):
        pass

    def __fspath__(self):
        return f"fake://{self.key}"

    __str__ = __fspath__

    def __eq__(self, other):
        return str(self) == str(other)

    def __hash__(self):
        return hash(self.key)

    @property
    def here(self):
        if self.is_down:
            raise ConnectionError("the store does not answer.\nmore")
        return self.root / self.key

    @property
    def name(self):
        return self.key.rpartition("/")[2]

    @property
    def parent(self):
        return FakePath(self.key.rpartition("/")[0])

    def joinpath(self, *names):
        return FakePath(self.key, *names)

    __truediv__ = joinpath

    def with_name(self, name):
        return self.parent / name

    def with_suffix(self, suffix):
        return self.with_name(Path(self.name).with_suffix(suffix).name)

    def exists(self):
        return self.here.exists()

    def is_dir(self):
        return self.here.is_dir()

    def iterdir(self):
        return (self / child.name for child in self.here.iterdir())

    def mkdir(self, mode=None, parents=False, exist_ok=False):
        self.here.mkdir(parents=parents, exist_ok=exist_ok)

    def open(self, mode="r", **kwargs):
        return self.here.open(mode)

    def rmtree(self, missing_ok=False):
        shutil.rmtree(self.here)

    def unlink(self, missing_ok=False):
        self.here.unlink()

    def replace(self, target):
        self.here.replace(target.here)
        return target
