"""Time groups against one another: every row is one model, bit widths, method and seed, measured on the integer path.

    python scripts/bench_adpdm.py --model digits DIR DIR --bits W6A6 W4A4 --groups 2 4 8 --seeds 3 --json out/adpdm.json

Rows that decide come first: W6A6 and W4A4, seed 0 of every model; then further seeds; then the other bit widths. A row
that the JSON already holds is not measured again, so a run that was stopped goes on, unless the model or the sources
behind the row (all that `BEHIND` reaches, without comments and docstrings) have changed since: then it counts as
stale and is made again. Several processes may share a JSON if they have different models, bit widths, methods or
groups. Prints a table of each model: mean and standard deviation over seeds. `--show` measures nothing; `--figure`
draws the rows.
"""

import argparse
import functools
import itertools
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from adpdm_rows import METHODS, POLICIES, Shared, widths
from bench_rows import ROOT, add, digests_of, in_figures, is_fresh, read, spread
from models import HELP, load
from rich.console import Console
from rich.table import Table

import jaxdq
from jaxdq.recipes import default_rules

BEHIND = (ROOT / "scripts" / "adpdm_rows.py", ROOT / "jaxdq" / "diffusion" / "_ddim.py")  # the rows and their sampler
FIRST_BITS = ("W6A6", "W4A4")
COLORS = ("#4878a8", "#d98b3a", "#5a9e6f", "#a85a5a")  # a bit width each
# (figure of a row, head of its column, digits)
COLUMNS = (
    ("noise_sqnr_db", "noise SQNR (dB)\nmean of steps", 2),
    ("noise_sqnr_pooled_db", "\npooled", 2),
    ("image_psnr_db", "image PSNR (dB)\npooled", 1),
    ("image_psnr_median_db", "\nmedian", 1),
    ("image_psnr_worst5_db", "\nworst 5%", 1),
    ("fd_to_float", "Fréchet distance\nsame noise", 3),
    ("fd_other_noise", "\nother noise", 3),
    ("fd_float_floor", "\nfloat, other", 3),
    ("calibrate_seconds", "seconds", 0),
)
DRAWN = (
    ("noise_sqnr_db", "noise SQNR (dB)"),
    ("image_psnr_db", "image PSNR (dB)"),
    ("fd_to_float", "Fréchet distance"),
)


class Task(NamedTuple):
    """One row to measure; `model` is the denoiser's name."""

    model: str
    bits: str
    method: str
    groups: int
    budget: str
    steps: int
    images: int
    seed: int

    @property
    def label(self) -> str:
        """What the JSON knows the row by."""
        return f"{self.group_label} seed{self.seed}"

    @property
    def group_label(self) -> str:
        """What rows have in common that differ in their seed alone."""
        rest = f"G{self.groups} {self.budget} S{self.steps} N{self.images}"
        return f"{self.model} {self.bits} {self.method} {rest}"


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then show all that was asked for."""
    args = parse(argv)
    denoisers = {denoiser.name: denoiser for denoiser in map(load, args.model)}
    digests = digests_of(denoisers, *BEHIND)
    tasks = tasks_of(args, list(denoisers))
    sampler = jaxdq.ddim(args.steps)

    @functools.lru_cache(maxsize=1)  # rows of one model and seed follow one another
    def shared(model: str, seed: int) -> Shared:
        return Shared(denoisers[model], sampler, seed, args.images)

    for index, task in enumerate([] if args.show else tasks):
        if is_fresh(read(args.json), task.label, digests[task.model]):
            continue
        row = shared(task.model, task.seed).row(task.bits, task.method, task.groups, task.budget)
        add(args.json, task.label, row, digests[task.model])
        print(f"{index + 1} of {len(tasks)}: {task.label}: {row['noise_sqnr_db']:.2f} dB", file=sys.stderr, flush=True)
    rows = read(args.json)
    fresh = {task: rows[task.label] for task in tasks if is_fresh(rows, task.label, digests[task.model])}
    stale = sum(task.label in rows for task in tasks) - len(fresh)
    summary = summarise(fresh)
    for name in denoisers:
        Console(width=200).print(table_of(name, {task: found for task, found in summary.items() if task.model == name}))
    print(f"{len(fresh)} of {len(tasks)} rows; {stale} more are stale: other sources or another model made them.")
    if args.figure is not None and summary:
        draw(summary, args.figure)


def tasks_of(args: argparse.Namespace, models: list[str]) -> list[Task]:
    """All rows that were asked for, those that decide first."""
    asked = itertools.product(models, args.bits, args.groups, args.budgets, args.methods, range(args.seeds))
    tasks = [
        Task(model, bits, method, METHODS[method].num_groups or groups, budget, args.steps, args.images, seed)
        for model, bits, groups, budget, method, seed in asked
    ]
    return sorted(dict.fromkeys(tasks), key=lambda task: (task.bits not in FIRST_BITS, task.seed))  # stable


def budget_of(text: str) -> str:
    """`all`, or POLICY:STATES."""
    if text != "all" and re.fullmatch(f"({'|'.join(POLICIES)}):[1-9][0-9]*", text) is None:
        raise argparse.ArgumentTypeError(f"'{text}' is neither 'all' nor POLICY:STATES such as risk:200")
    return text


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["digits"], help=f"each {HELP}")
    parser.add_argument("--bits", nargs="+", default=["W6A6", "W4A4", "W4A8", "W8A8"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument(
        "--budgets", nargs="+", type=budget_of, default=["all"], help="all, or POLICY:STATES such as risk:200"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--json", type=Path, default=Path("out/bench_adpdm.json"))
    parser.add_argument("--show", action="store_true", help="measure nothing, show the rows that are there")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args(argv)
    for bits in args.bits:
        default_rules(*widths(bits))  # refuses what no grid has
    if not 1 <= min(args.groups) <= max(args.groups) <= args.steps:
        parser.error(f"--groups has {args.groups} and the sampler {args.steps} steps; give 1 to {args.steps}")
    return args


def summarise(rows: dict[Task, dict]) -> dict[Task, dict[str, Any]]:
    """Over seeds, under the first seed's task: their number, (mean, deviation) of each figure, the search's gains."""
    grouped: dict[str, list[Task]] = {}
    for task in rows:
        grouped.setdefault(task.group_label, []).append(task)
    return {
        tasks[0]: {
            "seeds": len(tasks),
            "gains": [gain for task in tasks if (gain := gain_of(rows[task]["log"])) is not None],
            **{figure: spread(rows[task][figure] for task in tasks) for figure, *_ in COLUMNS},
        }
        for tasks in grouped.values()
    }


def gain_of(log: list[list[Any]]) -> tuple[float, float] | None:
    """What the search and the best contiguous partition gain over one group in discretisation error, in dB."""
    error = next((numbers["proxy"] for _, numbers in log if "proxy" in numbers), None)
    if error is None:
        return None
    search, best = (10 * np.log10(error["one group"] / error[name]) for name in ("search", "dynamic programming"))
    return float(search), float(best)


def table_of(model: str, summary: dict[Task, dict[str, Any]]) -> Table:
    """One line for each row but for its seed, methods side by side."""
    table = Table(title=f"{model}: mean ± standard deviation over seeds", title_justify="left", box=None)
    for head in ("", "method", "groups", "seeds"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("", "method") else "right")
    for _, head, _ in COLUMNS:
        table.add_column(head, no_wrap=True, justify="right")
    table.add_column("search's gain in\ndiscretisation error", no_wrap=True, justify="right")
    above = None
    for task in sorted(summary, key=order):
        found = summary[task]
        what = f"{task.bits}{'' if task.budget == 'all' else f' {task.budget}'}"
        cells = [in_figures(*found[figure], digits) for figure, _, digits in COLUMNS]
        heads = "" if what == above else what, task.method, str(task.groups), str(found["seeds"])
        table.add_row(*heads, *cells, gain_in_words(found["gains"]))
        above = what
    return table


def gain_in_words(gains: list[tuple[float, float]]) -> str:
    """`0.29 of 0.30 dB (97%)`, means over seeds: percents of a gain say little without its size."""
    if not gains:
        return ""
    search, best = np.mean(gains, axis=0)
    return f"{search:.2f} of {best:.2f} dB" + (f" ({100 * search / best:.0f}%)" if best > 0 else "")


def order(task: Task) -> tuple:
    """Rows from many bits to few, methods as listed, groups by number."""
    weight_bits, act_bits = widths(task.bits)
    rank = task.budget != "all", task.budget, task.groups, list(METHODS).index(task.method)
    return task.model, -act_bits, -weight_bits, *rank


def draw(summary: dict[Task, dict[str, Any]], path: Path) -> None:
    """One panel a figure, one bar a row, with the spread over seeds; what all rows have in common is the title."""
    from matplotlib.figure import Figure

    tasks = sorted(summary, key=order)
    parts = [in_words(task) for task in tasks]
    in_common = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    title = ", ".join(itertools.compress(parts[0], in_common))
    own = [", ".join(part for part, same in zip(row, in_common, strict=True) if not same) for row in parts]
    colors = dict(zip(dict.fromkeys(task.bits for task in tasks), itertools.cycle(COLORS)))

    figure = Figure(figsize=(12, 1.2 + 0.25 * len(tasks)), layout="constrained")
    figure.suptitle(f"{title}, mean and standard deviation over seeds")
    for axes, (quantity, head) in zip(figure.subplots(1, len(DRAWN), sharey=True), DRAWN, strict=True):
        mean, deviation = zip(*(summary[task][quantity] for task in tasks), strict=True)
        axes.barh(own, mean, xerr=deviation, color=[colors[task.bits] for task in tasks], ecolor="#333333")
        axes.set_title(head)
        axes.set_ylim(len(tasks) - 0.5, -0.5)  # the first row on top
        axes.spines[["top", "right"]].set_visible(False)
        if quantity == "fd_to_float":
            axes.set_xscale("log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def in_words(task: Task) -> list[str]:
    """What a row is, for people."""
    policy, _, states = task.budget.partition(":")
    return [
        task.model,
        f"{task.bits} {task.method}",
        f"{task.groups} group{'s' * (task.groups > 1)}",
        f"{states} states ({policy})" if states else "all states",
        f"{task.steps} steps",
        f"{task.images} images",
    ]


if __name__ == "__main__":
    try:
        main()
    except jaxdq.InputError as error:
        sys.exit(str(error))
