"""Settings of a run, and the recipe and sampler that they name."""

import dataclasses
import functools
import inspect
import shlex
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdq import recipes
from jaxdq._common.checks import MOST_IMAGES
from jaxdq._common.errors import InputError
from jaxdq._common.paths import local_path
from jaxdq.app.arguments import typed, with_fields
from jaxdq.calibration import Recipe
from jaxdq.diffusion import Sampler, sampler_named
from jaxdq.linen import check_dtype
from jaxdq.recipes import chain, within_budget
from jaxdq.sampling import BATCH_SIZE

DEFAULT_RECIPE = "adpdm"
# One number of the seed for each use, so that no two uses share noise.
CALIBRATE, EVALUATE, SAMPLE, PROMPTS = range(4)
# Arguments of recipes that have a setting, and an option, of their own.
_SETTING_OF = {"weight_bits": "weight_bits", "act_bits": "act_bits", "num_groups": "groups", "ranges": "ranges"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked of a run.

    Attributes:
        model: What `jaxdq.load_denoiser` takes: a bundled name or a folder.
        recipe: The name of a function of `jaxdq.recipes`; or several, `adpdm+tac`, as `recipes.chain` joins them.
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        groups: Spans of time with scales of their own; None leaves it to the recipe.
        ranges: "minmax", "mse", "percentile" or "learned"; None leaves it to the recipe.
        budget: Share of the float network's bytes, such as "0.12x", within which each layer gets its bits of weights;
            None gives all `weight_bits`.
        arguments: Others of the recipe, such as {"budget": 64, "search.num_updates": 30}; values, or their text.
        sampler: A name of `jaxdq.diffusion.SAMPLERS`; None takes the one that the model's own files ask for.
        eta: Eta of DDIM, in [0, 1].
        steps: Number of steps of the sampler.
        seed: Random seed, in [0, 2**32).
        images: Number of images to evaluate on, at least 2.
        calibration_images: Number of images to calibrate on, at least 1.
        batch_size: Images at a time.
        prompts: A text file, one prompt a line, for a text-to-image model; None for others.
        guidance: The scale of its classifier-free guidance.
        conditions: An .npz file with rows of what the network takes after (x, t) and is not in the prompts, by name.
        dtype: Dtype of what stays in float, as `jaxdq.quantize` takes it; None leaves it to the checkpoint.
        classes: For a class-conditional model, the classes to draw in turn: "0,5,9"; None is all of them.

    Raises:
        InputError: A number out of its range, classes that are no list of numbers, an argument that the recipe doesn't
            have, or one of another type.
    """

    model: str
    recipe: str = DEFAULT_RECIPE
    weight_bits: int = 8
    act_bits: int = 8
    groups: int | None = None
    ranges: str | None = None
    budget: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampler: str | None = None
    eta: float = 0.0
    steps: int = 50
    seed: int = 0
    images: int = 64
    calibration_images: int = 32
    batch_size: int = BATCH_SIZE
    prompts: str | None = None
    guidance: float = 7.5
    conditions: str | None = None
    dtype: str | None = None
    classes: str | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, least in (("images", 2), ("calibration_images", 1), ("batch_size", 1)):
            if not least <= getattr(self, name) <= MOST_IMAGES:
                raise InputError(f"{name} is {getattr(self, name):,}; give {least} to {MOST_IMAGES:,}.")
        check_dtype(self.dtype)
        if self.budget is not None:
            parse_budget(self.budget)
        if self.class_ids is not None and self.prompts is not None:
            raise InputError("both classes and prompts were given; a model draws from one of them: give that one.")
        if self.class_ids is not None and self.conditions is not None:
            raise InputError("both classes and conditions were given; put class_labels into the file of conditions.")
        self._take_arguments()

    @property
    def class_ids(self) -> tuple[int, ...] | None:
        """The numbers in `classes`."""
        return None if self.classes is None else parse_classes(self.classes)

    def _take_arguments(self) -> None:
        """Gives arguments their types, and settings of their own to those that have one: the recipe's, once."""
        given = dict(self.arguments)
        if given:
            given = typed(recipe_named(self.recipe), given, f"recipe '{self.recipe}'")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, setting in _SETTING_OF.items():
            if name in given:
                value, before = given.pop(name), getattr(self, setting)
                if before not in (value, defaults[setting]):
                    raise InputError(f"{setting} is {before} and {name} was set to {value}; give one of them.")
                object.__setattr__(self, setting, value)
        object.__setattr__(self, "arguments", given)

    @property
    def default_folder(self) -> Path:
        """Where the run goes if nobody says otherwise: `out/digits-adpdm-w8a8-g8-mse-budget=64`."""
        groups = "" if self.groups is None else f"-g{self.groups}"
        bits = f"w{self.weight_bits}a{self.act_bits}"
        dtype = "" if self.dtype is None else f"-{self.dtype}"
        ranges = "" if self.ranges is None else f"-{self.ranges}"
        ranges += "" if self.budget is None else f"-{self.budget}"
        sampler = "" if self.sampler is None else f"-{self.sampler}"
        arguments = "".join(f"-{name}={value}" for name, value in self.arguments.items())
        model = local_path(self.model).resolve().name
        name = f"{model}-{self.recipe}-{bits}{groups}{ranges}{sampler}{arguments}{dtype}"
        return Path("out") / name


def recipes_by_name() -> dict[str, Callable[..., Recipe]]:
    """The functions of `jaxdq.recipes` that return a Recipe, and take none."""
    public = {name: value for name, value in vars(recipes).items() if inspect.isfunction(value) and name[0] != "_"}
    hints = {name: typing.get_type_hints(value) for name, value in public.items()}
    return {
        name: public[name] for name, hint in hints.items() if [key for key in hint if hint[key] is Recipe] == ["return"]
    }


def recipe_named(name: str) -> Callable[..., Recipe]:
    """The recipe of this name; of `adpdm+tac`, the first.

    Raises:
        InputError: No such recipe.
    """
    return _recipes_named(name)[0]


def _recipes_named(name: str) -> list[Callable[..., Recipe]]:
    known = recipes_by_name()
    for one in (names := name.split("+")):
        if one not in known:
            raise InputError(f"there is no recipe {one!r}; the recipes are {', '.join(sorted(known))}.")
    return [known[one] for one in names]


def make_recipe(settings: Settings) -> Recipe:
    """The recipe that the settings name.

    Raises:
        InputError: No such recipe, bits outside 2..8, unknown ranges, or groups for a recipe that has none.
    """
    make = recipe_named(settings.recipe)
    keywords: dict[str, Any] = {"weight_bits": settings.weight_bits, "act_bits": settings.act_bits}
    if settings.ranges is not None:
        keywords["ranges"] = settings.ranges
    if settings.groups is not None and _takes_groups(make):
        keywords["num_groups"] = settings.groups
    elif settings.groups not in (None, 1):
        with_groups = sorted(name for name, other in recipes_by_name().items() if _takes_groups(other))
        raise InputError(
            f"recipe '{settings.recipe}' has one scale for all times and can't use {settings.groups} groups; leave "
            f"--groups out, or choose one of {', '.join(with_groups)}."
        )
    fields = {name: value for name, value in settings.arguments.items() if "." in name}
    keywords |= {name: value for name, value in settings.arguments.items() if name not in fields}
    recipe = make(**keywords)
    if fields:
        recipe = make(**keywords, **with_fields(make, fields, functools.partial(_made_with, recipe)))
    others = (other(settings.weight_bits, settings.act_bits) for other in _recipes_named(settings.recipe)[1:])
    recipe = chain(recipe, *others)
    return recipe if settings.budget is None else within_budget(recipe, parse_budget(settings.budget))


def _made_with(recipe: Recipe, cls: Any) -> Any:
    """The settings of this class in a recipe, which may depend on its other arguments; the class's own if none are."""
    names = {field.name for field in dataclasses.fields(cls)}
    for one in recipe.calibrators:
        for value in one.settings.values():
            if isinstance(value, Mapping) and set(value) == names:
                return cls(**value)
    return cls()


def ranges_of(settings: Settings) -> str:
    """How ranges are chosen: as asked for, or as the recipe does it by default."""
    own: str = inspect.signature(recipe_named(settings.recipe)).parameters["ranges"].default
    return settings.ranges or own


def make_sampler(name: str, steps: int, eta: float = 0.0) -> Sampler:
    """The sampler of this name.

    Raises:
        InputError: No such sampler, or a number out of its range.
    """
    if name != "ddim" and eta:
        raise InputError(f"eta is {eta}, and the {name} sampler has none; leave it out, or sample with ddim.")
    return sampler_named(name, steps, **({"eta": eta} if name == "ddim" else {}))


def check_seed(seed: int) -> None:
    """Refuses a seed that JAX would fold into another."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; give a whole number from 0 to {2**32 - 1}.")


def parse_budget(text: str) -> float:
    """The share in a text such as "0.12x".

    Raises:
        InputError: Anything but a number in (0, 1], with or without an x behind it.
    """
    try:
        share = float(str(text).strip().lower().removesuffix("x"))
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"budget is {text!r}; give a share of the float network's bytes in (0, 1], such as 0.12x.")
    return share


def parse_classes(text: str) -> tuple[int, ...]:
    """The classes in a text such as "0,5,9".

    Raises:
        InputError: Anything but different whole numbers from 0, with commas between them.
    """
    words = [word.strip() for word in text.split(",")] if isinstance(text, str) else []
    is_number = [word.isascii() and word.isdigit() for word in words]
    if not words or not all(is_number) or len(set(map(int, words))) < len(words):
        raise InputError(f"classes is {text!r}; give different whole numbers from 0 with commas between: 0,5,9.")
    return tuple(map(int, words))


def key_of(seed: int, use: int) -> jax.Array:
    """The random key of one use of a run's seed."""
    return jax.random.fold_in(jax.random.key(seed), use)


def command_of(settings: Settings, recipe: Recipe, out: Path) -> str:
    """The command line that makes this run again, no option's default left unsaid."""
    options = {
        name: value for name, value in dataclasses.asdict(settings).items() if name not in ("model", "arguments")
    }
    options["groups"] = recipe.num_groups if _takes_groups(recipe_named(settings.recipe)) else None
    options["ranges"] = ranges_of(settings)
    options["eta"] = settings.eta if settings.sampler == "ddim" else None
    options["guidance"] = settings.guidance if settings.prompts is not None else None
    words = ["jaxdq", "quantize", settings.model]
    for name, value in options.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    for name, value in settings.arguments.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join([*words, "--out", str(out)])


def _takes_groups(make: Callable[..., Recipe]) -> bool:
    return "num_groups" in inspect.signature(make).parameters
