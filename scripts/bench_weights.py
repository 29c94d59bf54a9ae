"""Ways of rounding weights against one another: every row is one model, bit widths, method and seed.

    python scripts/bench_weights.py --model digits DIR DIR --bits W4A8 W3A8 W4 --seeds 3 --json out/weights.json

All rows have ranges of least squared error (those of activations in eight equal spans of time), are measured on the
integer path (`W4` is weights alone, activations in float), and differ in how the codes of the weights come about;
layers whose input is a concatenation are split, but for methods whose names end in `-whole`. A row
that the JSON already holds is not measured again, unless the model or the sources behind the row have changed since.
Prints a table of each model: mean and standard deviation over seeds. `--show` measures nothing.
"""

import argparse
import functools
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import block_rows
import budget_rows
import weights_rows
from bench_rows import ROOT, add, digests_of, is_fresh, read, show
from models import HELP, load
from weights_rows import rules_of

import jaxdq

METHODS = {**weights_rows.METHODS, **block_rows.METHODS, **budget_rows.METHODS}
WHOLE = "-whole"  # ends the names of rows without the split
# What a row depends on: the file that makes it, and the sampler.
BEHIND = {
    name: (ROOT / "scripts" / f"{rows.__name__}.py", ROOT / "jaxdq" / "diffusion" / "_ddim.py")
    for rows in (weights_rows, block_rows, budget_rows)
    for name in rows.METHODS
}


class Task(NamedTuple):
    """One row to measure; `model` is the denoiser's name."""

    model: str
    bits: str
    method: str
    steps: int
    images: int
    seed: int

    @property
    def label(self) -> str:
        """What the JSON knows the row by."""
        return f"{self.model} {self.bits} {self.method} S{self.steps} N{self.images} seed{self.seed}"

    @property
    def heads(self) -> tuple[str, ...]:
        """What a line of the table is called."""
        return self.bits, self.method


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then show all that was asked for."""
    args = parse(argv)
    denoisers = {denoiser.name: denoiser for denoiser in map(load, args.model)}
    behind = {files: digests_of(denoisers, *files) for files in set(BEHIND.values())}
    digests = {(model, method): behind[_behind(method)][model] for model in denoisers for method in args.methods}
    asked = itertools.product(range(args.seeds), denoisers, args.bits, args.methods)
    tasks = [Task(model, bits, method, args.steps, args.images, seed) for seed, model, bits, method in asked]
    sampler = jaxdq.ddim(args.steps)

    @functools.lru_cache(maxsize=2)  # rows of one seed and model follow one another
    def shared(model: str, seed: int, split: bool) -> budget_rows.Budgets:
        return budget_rows.Budgets(denoisers[model], sampler, seed, args.images, split)

    for index, task in enumerate([] if args.show else tasks):
        digest = digests[task.model, task.method]
        if is_fresh(read(args.json), task.label, digest):
            continue
        method = task.method.removesuffix(WHOLE)
        found = shared(task.model, task.seed, method == task.method)
        makers = ((block_rows, found.blocks_row), (budget_rows, found.budget_row))
        make = next((make for rows, make in makers if method in rows.METHODS), found.weights_row)
        row = make(task.bits, method)
        add(args.json, task.label, row, digest)
        print(f"{index + 1} of {len(tasks)}: {task.label}: {row['noise_sqnr_db']:.2f} dB", file=sys.stderr, flush=True)
    show(tasks, read(args.json), lambda task: digests[task.model, task.method], ("", "method"))


def _behind(method: str) -> tuple[Path, ...]:
    return BEHIND[method.removesuffix(WHOLE)]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["digits"], help=f"each {HELP}")
    parser.add_argument("--bits", nargs="+", default=["W4A8", "W3A8", "W8A8", "W2A8", "W4", "W3"])
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=[*METHODS, *(f"{name}{WHOLE}" for name in METHODS)]
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--json", type=Path, default=Path("out/bench_weights.json"))
    parser.add_argument("--show", action="store_true", help="measure nothing, show the rows that are there")
    args = parser.parse_args(argv)
    for bits in args.bits:
        rules_of(bits)  # refuses what no grid has
    return args


if __name__ == "__main__":
    main()
