"""What a whole network costs on a chip, composed from its distinct calls."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdq.cost._calls import Call, Network
from jaxdq.cost._chips import Chip
from jaxdq.cost._compiler import Compiled, compile_for
from jaxdq.cost._lowered import (
    ATTEMPTS,
    ExecutionMode,
    LoweredCall,
    ends_bytes,
    lowered_call,
    lowered_function,
    lowered_look_up,
)
from jaxdq.linen import Plan

BETWEEN, LOOK_UP = "between modules", "look-up"


class Variant(NamedTuple):
    """A network and the mode it runs in.

    Attributes:
        network: What `network_of` found in the variant's dtype.
        mode: How its calls run.
        plan: Which sites are quantized, where the variant quantizes.
    """

    network: Network
    mode: ExecutionMode
    plan: Plan


class Modelled(NamedTuple):
    """The modelled cost of one call of a network.

    Attributes:
        milliseconds: The sum over calls of the longer of schedule and memory, and what stands between the calls.
        parts: Kind of call -> milliseconds.
        schedule_milliseconds: Milliseconds of the final schedules alone, as if memory never made them wait.
        memory_milliseconds: Milliseconds of the bytes alone.
        memory_bytes: Bytes moved from and to the chip's memory.
        guessed_fraction: Share of the cycles that no schedule was simulated for.
        contractions: "s8 x s8" -> number of dots and convolutions of these operands.
        temp_bytes: The most that is alive at one time: between calls, or within one.
        code_bytes: Bytes of the distinct calls' programs, each once.
        compile_seconds: Seconds of the compilations that were kept, done now or earlier.
        num_programs: Distinct programs.
    """

    milliseconds: float
    parts: dict[str, float]
    schedule_milliseconds: float
    memory_milliseconds: float
    memory_bytes: int
    guessed_fraction: float
    contractions: dict[str, int]
    temp_bytes: int
    code_bytes: int
    compile_seconds: float
    num_programs: int


def modelled(variants: Mapping[str, Variant], chip: Chip, *, jobs: int | None = None) -> dict[str, Modelled]:
    """Models several variants of a network on a chip; calls that they share are compiled once.

    The time of a call is `max(cycles / clock, bytes / bandwidth)`: cycles from the compiler's simulation of its own
    final schedule, on fewer rows where cycles are in proportion to them; bytes are those of inputs, output and weights.
    Calls are priced one by one, so a fusion across them is not seen; a call counts its input as it is stored before it.
    Where grids are static, those of the call's time are looked up once among eight groups.

    Args:
        variants: Variants by name.
        chip: The chip.
        jobs: Compilers at a time; None is one for each processor.
    """
    wanted = {
        name: [(call, _same(call, mode, plan)) for call in map(functools.partial(_on_codes, mode, plan), network.calls)]
        for name, (network, mode, plan) in variants.items()
    }
    distinct = {
        same: (call, mode, plan.by_path.get(call.path))
        for name, (_, mode, plan) in variants.items()
        for call, same in wanted[name]
    }
    priced: dict[Any, tuple[LoweredCall, Compiled]] = {}
    for attempt in range(len(ATTEMPTS)):
        units = {same: lowered_call(*distinct[same], attempt) for same in distinct if _unsure(priced.get(same))}
        answers = compile_for([unit.exported for unit in units.values()], chip, jobs=jobs)
        for (same, unit), answer in zip(units.items(), answers, strict=True):
            if same not in priced or not answer.program.guessed:
                priced[same] = unit, answer
    return {
        name: _sum(
            [(call, *priced[same]) for call, same in wanted[name]],
            network,
            mode,
            chip,
            _elementwise_cycles(network, chip, jobs),
            _look_up_cycles(mode, plan, chip),
        )
        for name, (network, mode, plan) in variants.items()
    }


def _elementwise_cycles(network: Network, chip: Chip, jobs: int | None) -> float:
    """Of what is computed between the calls."""
    functions = [(*key, elements) for key, elements in network.computed if key[0] != "arithmetic"]
    units = [lowered_function(*function) for function in functions]
    answers = compile_for([unit.exported for unit in units], chip, jobs=jobs)
    each = [unit.ratio * sum(answer.program.cycles.values()) for unit, answer in zip(units, answers, strict=True)]
    return sum(each) + sum(elements for key, elements in network.computed if key[0] == "arithmetic") / chip.lanes


def _look_up_cycles(mode: ExecutionMode, plan: Plan, chip: Chip) -> float:
    """Of the grids' tables at the call's time, where they are static."""
    if not mode.quantized or mode.act != "static" or not plan.columns:
        return 0.0
    (answer,) = compile_for([lowered_look_up(plan).exported], chip)
    return float(sum(answer.program.cycles.values()))


def _on_codes(mode: ExecutionMode, plan: Plan, call: Call) -> Call:
    """The call, with codes for its input where an earlier call makes them of the same array on the same grid."""
    is_made = mode.quantized and mode.act == "static" and plan.has_codes_of_another(call.path)
    if not is_made or call.kind != "dense layers":  # convolutions may pad their codes first
        return call
    return dataclasses.replace(call, inputs=(jax.ShapeDtypeStruct(call.inputs[0].shape, jnp.int8),))


def _unsure(found: tuple[LoweredCall, Compiled] | None) -> bool:
    """Whether no schedule was simulated for all of a call."""
    return found is None or found[1].program.guessed > 0


def _same(call: Call, mode: ExecutionMode, plan: Plan) -> tuple:
    """What two calls have in common that are one program."""
    site = plan.by_path.get(call.path)
    schemes = (site.weight, site.act) if site is not None and mode.quantized else (None, None)
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves((call.inputs, call.params))]
    how = mode if schemes != (None, None) else mode._replace(quantized=False, act="float")
    how = how if call.kind == "attention" else how._replace(blocked=True)
    parts = site.parts if site is not None and mode.quantized else ()
    return (repr(call.module), call.equation, tuple(shapes), *map(str, schemes), parts, str(how))


def _sum(
    calls: Sequence[tuple[Call, LoweredCall, Compiled]],
    network: Network,
    mode: ExecutionMode,
    chip: Chip,
    between: float = 0.0,
    look_up: float = 0.0,
) -> Modelled:
    """The whole; `between` are the cycles of what is computed between the calls, `look_up` those of the grids."""
    parts: dict[str, float] = collections.defaultdict(float)
    contractions: collections.Counter[str] = collections.Counter()
    schedule, total_bytes, cycles, guessed, inside = 0.0, network.moved_bytes, 0.0, 0.0, 0
    for call, unit, answer in calls:
        own, moved = sum(answer.program.cycles.values()), unit.param_bytes + ends_bytes(call, mode)
        seconds = unit.ratio * own / chip.clock
        parts[call.kind] += max(seconds, moved / chip.bandwidth) * 1e3
        schedule += seconds * 1e3
        total_bytes += moved
        cycles, guessed = cycles + unit.ratio * own, guessed + unit.ratio * answer.program.guessed
        inside = max(inside, _scores_bytes(call, mode))
        if call.kind != "norms":
            contractions.update(answer.program.contractions)
    cycles += between + look_up
    schedule += (between + look_up) / chip.clock * 1e3
    parts[BETWEEN] = max(network.moved_bytes / chip.bandwidth, between / chip.clock) * 1e3
    if look_up:
        parts[LOOK_UP] = look_up / chip.clock * 1e3
    distinct = {id(answer): answer for _, _, answer in calls}.values()
    return Modelled(
        milliseconds=sum(parts.values()),
        parts=dict(parts),
        schedule_milliseconds=schedule,
        memory_milliseconds=total_bytes / chip.bandwidth * 1e3,
        memory_bytes=total_bytes,
        guessed_fraction=guessed / max(1.0, cycles),
        contractions=dict(contractions),
        temp_bytes=network.live_bytes + inside,
        code_bytes=sum(answer.code_bytes for answer in distinct),
        compile_seconds=sum(answer.seconds for answer in distinct),
        num_programs=len(distinct),
    )


def _scores_bytes(call: Call, mode: ExecutionMode) -> int:
    """What is alive within a call of attention that makes its scores whole."""
    return (ends_bytes(call, mode) - ends_bytes(call, mode._replace(blocked=True))) // 2
