"""What a compiled program says of itself, read from its text (HLO as the TPU compiler leaves it)."""

import collections
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_SCHEDULED = re.compile(r'"bundle_analysis_data":\{"estimated_cycles":"(\d+)"')
_GUESSED = re.compile(r'"window_config":\{.*?"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_LIBRARY = re.compile(r'custom_call_target="__(?:cublas|cudnn\$conv)')
CONTRACTIONS = ("convolution", "dot")  # a TPU program has its dots as convolutions too
# By how much the heuristic is too high for operations of an element each, whose schedules say 4 to 8 times fewer.
_EXAGGERATED = 4
FRAME = "around_the_unit"  # a named scope: what stands around the call that is priced, and is not counted


class Instruction(NamedTuple):
    """One line of the text.

    Attributes:
        name: Unique in the program.
        type: Type of the result, such as "bf16[8,128]{1,0}".
        op: "fusion", "convolution", "while", ...
        rest: The line from the operands on.
    """

    name: str
    type: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])


class Program(NamedTuple):
    """What was read.

    Attributes:
        cycles: Kind ("matrix", "copy" or "other") -> cycles, every loop's body as often as it runs.
        guessed: The part of them due to instructions that the schedule did not price, as the tiling heuristic has it.
        contractions: "s8 x s8" -> number of dots and convolutions of these operands.
        conditionals: Number of conditionals that have a contraction in a branch; tables may be chosen by one.
    """

    cycles: dict[str, int]
    guessed: int
    contractions: dict[str, int]
    conditionals: int


def read_program(text: str) -> Program:
    """Reads the optimized HLO of a program, compiled for a TPU or for another platform.

    `cycles` are those of the final schedule where it was simulated (`bundle_analysis_data`), else the heuristic's
    (`window_config`), which is right for dots and convolutions in bfloat16 and up to four times too high for
    convolutions of int8; a quarter of it where nothing is contracted. Neither counts waiting for memory.
    """
    computations, entry = _computations(text)
    every = [instruction for lines in computations.values() for instruction in lines]
    branches = [_branches(instruction) for instruction in every if instruction.op == "conditional"]
    cycles, guessed = _cycles(computations, entry)
    return Program(
        cycles=dict(cycles),
        guessed=guessed,
        contractions=dict(collections.Counter(_contractions(computations))),
        conditionals=sum(any(_has_contraction(computations, name) for name in names) for names in branches),
    )


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    found: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head.group(2)
            found[current] = []
            entry = current if head.group(1) else entry
        elif current and (match := _INSTRUCTION.match(line)):
            found[current].append(Instruction(*match.groups()))
    return found, entry


def _contractions(computations: dict[str, list[Instruction]]) -> Iterator[str]:
    for lines in computations.values():
        types = {instruction.name: instruction.type.split("[")[0] for instruction in lines}
        for instruction in lines:
            if _contracts(instruction):
                yield " x ".join(types.get(operand, "?") for operand in instruction.operands[:2])


def _cycles(computations: dict[str, list[Instruction]], entry: str) -> tuple[collections.Counter[str], int]:
    def kind_of(line: Instruction) -> str:
        called = _CALLED.findall(line.rest)
        if _contracts(line) or any(_has_contraction(computations, name) for name in called):
            return "matrix"
        return "copy" if line.op in ("copy", "transpose") or any("copy" in name for name in called) else "other"

    def walk(name: str) -> tuple[collections.Counter[str], int]:
        total: collections.Counter[str] = collections.Counter()
        guessed = 0
        for line in computations.get(name, ()):
            inner, times = _inside(line, computations, walk)
            for counted, unsure in inner:
                total.update({kind: times * cycles for kind, cycles in counted.items()})
                guessed += times * unsure
            if inner or f"/{FRAME}/" in line.rest:
                continue
            if found := _SCHEDULED.search(line.rest):
                total[kind_of(line)] += int(found.group(1))
            elif found := _GUESSED.search(line.rest):
                kind = kind_of(line)
                cycles = int(found.group(1)) // (1 if kind == "matrix" else _EXAGGERATED)
                total[kind] += cycles
                guessed += cycles
        return total, guessed

    return walk(entry)


def _inside(
    line: Instruction, computations: dict[str, list[Instruction]], walk: Callable
) -> tuple[list[tuple[collections.Counter[str], int]], int]:
    """(cycles of the computations that an instruction runs, how often): of a conditional, the dearest branch."""
    if line.op == "while":
        body, condition = (re.search(rf"{name}=%?([\w.\-]+)", line.rest) for name in ("body", "condition"))
        assert body is not None and condition is not None
        return [walk(body.group(1))], _trips(line, computations.get(condition.group(1), []))
    if line.op == "conditional":
        return [max(map(walk, _branches(line)), key=lambda branch: sum(branch[0].values()))], 1
    return ([walk(name) for name in _CALLED.findall(line.rest)] if line.op == "call" else []), 1


def _contracts(line: Instruction) -> bool:
    """Whether an instruction is a dot or a convolution, or one that a GPU's library is called for."""
    return line.op in CONTRACTIONS or (line.op == "custom-call" and _LIBRARY.search(line.rest) is not None)


def _branches(line: Instruction) -> list[str]:
    """Names of the computations that a conditional chooses from."""
    if listed := re.search(r"branch_computations=\{([^}]*)\}", line.rest):
        return [name.strip().lstrip("%") for name in listed.group(1).split(",")]
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line.rest)


def _has_contraction(computations: dict[str, list[Instruction]], name: str) -> bool:
    """Whether a computation, or one that it calls, contracts."""
    return any(
        _contracts(line) or any(_has_contraction(computations, inner) for inner in _CALLED.findall(line.rest))
        for line in computations.get(name, ())
    )


def _trips(line: Instruction, condition: list[Instruction]) -> int:
    """How often a loop runs: what the compiler knows, else the largest constant that its condition compares with."""
    if known := re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', line.rest):
        return int(known.group(1))
    constants = [re.match(r"(\d+)\)", other.rest) for other in condition if other.op == "constant"]
    return max((int(constant.group(1)) for constant in constants if constant), default=1)
