"""The roles of calibration.

- `Work` is what is known so far: the problem, the machine, the facts that were measured, and the calibration that
  follows from them.
- A *calibrator* is a value that turns work into work that knows one thing more, or the same thing better: its name,
  its function `(work, key) -> work`, its settings, and the kinds of facts it needs and gives.
- A *recipe* is a name, rules, and a tuple of calibrators, run in order.

So min-max quantization, as everyone does it, is

    (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1));

a scale for each of eight equal spans of time has `share_uniformly(8)` in the last place, and a searched partition its
search. Learned rounding stands where `fit_weights` stands, or after it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdq._common.checks import is_whole
from jaxdq._common.describe import describe
from jaxdq._common.errors import InputError
from jaxdq.diffusion import Denoiser, Sampler
from jaxdq.grid import Grid
from jaxdq.linen import Acts, Calibration, Instead, Plan
from jaxdq.sampling import Trajectories

P = ParamSpec("P")
Fact = TypeVar("Fact")


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Images that results are judged by: of noise that no calibrator learns from.

    Attributes:
        key: Their noise.
        draw: Key -> f32[N, H, W, C], the float model's images.
    """

    key: jax.Array
    draw: Callable[[jax.Array], np.ndarray]

    @functools.cached_property
    def images(self) -> np.ndarray:
        """f32[N, H, W, C], drawn when they are first asked for."""
        return self.draw(self.key)


class Problem(NamedTuple):
    """What is to be quantized.

    Attributes:
        denoiser: The float model.
        sampler: Drew the trajectories.
        data: The float model's trajectories: what calibrators learn from.
        judge: What they are judged by.
        rows: int[R], the rows of the user's conditions that are the rows of `denoiser`'s; None is all of them.
    """

    denoiser: Denoiser
    sampler: Sampler
    data: Trajectories
    judge: Judge
    rows: np.ndarray | None = None


class Machine(NamedTuple):
    """Where it is done.

    Attributes:
        batch_size: Default batch size of calibrators.
        mesh: A mesh of one axis, whose devices share the rows that a network is shown; None is one device.
        folder: Where loops keep their state (a path, local or of etils.epath), so that a killed run goes on; None keeps
            none. Of its own for each calibrator.
    """

    batch_size: int = 32
    mesh: Mesh | None = None
    folder: Any | None = None


class Work(NamedTuple):
    """What is known so far: values on the host of every process.

    Attributes:
        problem: What is to be quantized.
        machine: Where it is done.
        facts: Kind -> what was measured; a kind is the type of its value, declared in the file of the calibrator that
            measures it.
        calib: The calibration; its plan is complete from the start. Nothing it holds is copied elsewhere.
        log: (name, numbers) of each calibrator that has something to report: `tried` maps what was tried to the error
            of the images that came of it, `kept` names the one that stays, `updates` are curves.
    """

    problem: Problem
    machine: Machine
    facts: Mapping[type, Any]
    calib: Calibration
    log: tuple[tuple[str, dict[str, Any]], ...] = ()

    @property
    def denoiser(self) -> Denoiser:
        """The float model."""
        return self.problem.denoiser

    @property
    def data(self) -> Trajectories:
        """The float model's trajectories."""
        return self.problem.data

    @property
    def plan(self) -> Plan:
        """Which site runs on which integers."""
        return self.calib.plan

    @property
    def acts(self) -> Acts:
        """The activations' grids.

        Raises:
            InputError: None were fitted yet.
        """
        if self.calib.acts is None:
            raise InputError(_missing("this calibrator", Acts))
        return self.calib.acts

    def fact(self, kind: type[Fact]) -> Fact:
        """What was measured of this kind.

        Raises:
            InputError: Nothing yet.
        """
        if kind not in self.facts:
            raise InputError(_missing("this calibrator", kind))
        return self.facts[kind]

    def knowing(self, fact: Any) -> "Work":
        """Work that knows this fact, in place of an earlier one of its kind."""
        return self._replace(facts=MappingProxyType({**self.facts, type(fact): fact}))

    def deciding(self, **decisions: Any) -> "Work":
        """Work with these fields of its calibration replaced."""
        return self._replace(calib=dataclasses.replace(self.calib, **decisions))

    def logging(self, name: str, numbers: dict[str, Any]) -> "Work":
        """Work with one entry more in its log."""
        return self._replace(log=(*self.log, (name, numbers)))

    def with_machine(self, **settings: Any) -> "Work":
        """Work on another machine."""
        return self._replace(machine=self.machine._replace(**settings))


Run = Callable[[Work, jax.Array], Work]


class Calibrator(NamedTuple):
    """One step of a recipe.

    Attributes:
        name: Name in a recipe; also the folder of its state.
        run: `(work, key) -> work`.
        settings: Its arguments as plain values of JSON: shown in metrics.json, and by which a resumed run is
            told from another.
        needs: Kinds that must be known before: types of facts, `Grid` for the weights' grids, `Acts` for activations'.
        gives: Kinds that are known afterwards.
        precedes: Kinds that it would make stale, so that they must not be known yet.
    """

    name: str
    run: Run
    settings: Mapping[str, Any] = MappingProxyType({})
    needs: tuple[type, ...] = ()
    gives: tuple[type, ...] = ()
    precedes: tuple[type, ...] = ()

    def __call__(self, work: Work, key: jax.Array) -> Work:
        """Run it."""
        return self.run(work, key)


def calibrator(
    *, needs: tuple[type, ...] = (), gives: tuple[type, ...] = (), precedes: tuple[type, ...] = ()
) -> Callable[[Callable[P, Run]], Callable[P, Calibrator]]:
    """Decorates a function of settings that returns `(work, key) -> work`, so that it returns a `Calibrator`.

    The name is the function's and the settings are its arguments, so that none can be forgotten.

    Args:
        needs: As in `Calibrator`.
        gives: As in `Calibrator`.
        precedes: As in `Calibrator`.

    Example:
        >>> @calibrator()
        ... def widen(factor: float = 2.0):
        ...     def run(work, key):
        ...         acts = work.acts
        ...         return work.deciding(acts=dataclasses.replace(acts, scale=factor * acts.scale))
        ...     return run
        >>> widen(3.0).name, dict(widen(3.0).settings)
        ('widen', {'factor': 3.0})
    """

    def decorate(make: Callable[P, Run]) -> Callable[P, Calibrator]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def made(*args: P.args, **kwargs: P.kwargs) -> Calibrator:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            run = make(*args, **kwargs)
            return Calibrator(make.__name__, run, describe(dict(bound.arguments)), needs, gives, precedes)

        return made

    return decorate


def check_order(name: str, calibrators: tuple[Calibrator, ...], *, keeps_state: bool) -> None:
    """Refuses a recipe whose calibrators cannot run in their order, before anything is sampled.

    Args:
        name: The recipe's.
        calibrators: In order.
        keeps_state: Whether each calibrator keeps its state in a folder of its name.

    Raises:
        InputError: Something that is no calibrator, a need that nothing before gives, a calibrator that comes too late,
            two of one name in one folder, or no grids in the end.
    """
    known: set[type] = set()
    seen: set[str] = set()
    for one in calibrators:
        if not isinstance(one, Calibrator):
            raise InputError(
                f"recipe '{name}' holds {one!r:.80}, which is no calibrator; decorate the function that makes it with "
                f"jaxdq.calibration.calibrator."
            )
        for kind in one.needs:
            if kind not in known:
                raise InputError(f"recipe '{name}' can't work: {_missing(f'{one.name!r}', kind)}")
        for kind in one.precedes:
            if kind in known:
                raise InputError(
                    f"recipe '{name}' can't work: '{one.name}' comes after {_words(kind)} were decided, which would "
                    f"know nothing of its choice; put it before {_giver(kind)}."
                )
        if keeps_state and one.name in seen:
            raise InputError(
                f"recipe '{name}' holds two calibrators of the name '{one.name}', which would share one folder of "
                f"state; leave checkpoint_dir out, or give one of them another name (calibrator._replace(name=...))."
            )
        known |= set(one.gives)
        seen.add(one.name)
    for kind in (Grid, Acts):
        if kind not in known:
            raise InputError(f"recipe '{name}' ends without {_words(kind)}; give it {_giver(kind)}.")


# kind -> (its plural in a sentence, a calibrator that gives it); what is not listed goes by its type's name.
_KINDS: dict[type, tuple[str, str]] = {
    Grid: ("grids of weights", "fit_weights(mse_weights())"),
    Acts: ("grids of activations", "a calibrator that fits them, such as share_uniformly(1)"),
    Instead: ("wider activations at some times", "relax_activations()"),
}


def kind(plural: str, giver: str) -> Callable[[type[Fact]], type[Fact]]:
    """Decorates a type of facts with the words that error sentences use for it.

    Args:
        plural: What it is, as in "ranges of activations".
        giver: A calibrator that measures it, as written in a recipe.
    """

    def decorate(fact: type[Fact]) -> type[Fact]:
        _KINDS[fact] = (plural, giver)
        return fact

    return decorate


def _words(fact: type) -> str:
    return _KINDS.get(fact, (f"facts of type {fact.__name__}", ""))[0]


def _giver(fact: type) -> str:
    return _KINDS.get(fact, ("", f"a calibrator that gives {fact.__name__}"))[1]


def _missing(who: str, fact: type) -> str:
    return f"{who} needs {_words(fact)} and nothing before it gives them; put {_giver(fact)} before it in the recipe."


def check_not_negative(**settings: float) -> None:
    """Refuses a rate or a weight that is negative, infinite or no number."""
    for name, value in settings.items():
        if not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
            raise InputError(f"{name} is {value!r}; give a finite number of at least 0.")


def check_truth(**settings: bool) -> None:
    """Refuses a switch that is neither True nor False: `"no"` would be true."""
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; give True or False.")


def check_at_least(least: int, **settings: int) -> None:
    """Refuses a setting that is no whole number, or too small for a loop."""
    for name, value in settings.items():
        if not is_whole(value) or value < least:
            raise InputError(f"{name} is {value!r}; give a whole number of at least {least}.")
