"""Corrections along the sampler's way against the same quantizers without them.

    python scripts/bench_sampler.py --model digits DIR --bits W4A8 W4A4 --samplers ddim50 ddim50:1 --seeds 3

Every row is one model, sampler, bit widths, method and seed, measured on the integer path: ranges of least squared
error in eight equal spans of time, weights rounded by GPTQ below 8 bits, then the method. `ddim50:1` is 50 steps with
eta 1. Rows resume and go stale as those of bench_weights.py do. Prints a table of each model; `--show` measures none.
"""

import argparse
import functools
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

from bench_rows import ROOT, add, digests_of, is_fresh, read, show
from models import HELP, load
from sampler_rows import METHODS, Sampled, sampler_of
from weights_rows import rules_of

BEHIND = (ROOT / "scripts" / "sampler_rows.py", ROOT / "jaxdq" / "diffusion" / "_samplers.py")


class Task(NamedTuple):
    """One row to measure; `model` is the denoiser's name."""

    model: str
    sampler: str
    bits: str
    method: str
    images: int
    seed: int

    @property
    def label(self) -> str:
        """What the JSON knows the row by."""
        return f"{self.model} {self.sampler} {self.bits} {self.method} N{self.images} seed{self.seed}"

    @property
    def heads(self) -> tuple[str, ...]:
        """What a line of the table is called."""
        return self.sampler, self.bits, self.method


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then show all that was asked for."""
    args = parse(argv)
    denoisers = {denoiser.name: denoiser for denoiser in map(load, args.model)}
    digests = digests_of(denoisers, *BEHIND)
    asked = itertools.product(range(args.seeds), denoisers, args.samplers, args.bits, args.methods)
    tasks = [Task(model, sampler, bits, method, args.images, seed) for seed, model, sampler, bits, method in asked]

    @functools.lru_cache(maxsize=1)  # rows of one seed, model and sampler follow one another
    def shared(model: str, sampler: str, seed: int) -> Sampled:
        return Sampled(denoisers[model], sampler_of(sampler), seed, args.images)

    for index, task in enumerate([] if args.show else tasks):
        if is_fresh(read(args.json), task.label, digests[task.model]):
            continue
        row = shared(task.model, task.sampler, task.seed).sampler_row(task.bits, task.method)
        add(args.json, task.label, row, digests[task.model])
        print(f"{index + 1} of {len(tasks)}: {task.label}: {row['image_psnr_db']:.2f} dB", file=sys.stderr, flush=True)
    show(tasks, read(args.json), lambda task: digests[task.model], ("sampler", "", "method"))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["digits"], help=f"each {HELP}")
    parser.add_argument("--bits", nargs="+", default=["W4A8", "W4A4", "W8A8", "W6A6"])
    parser.add_argument("--samplers", nargs="+", default=["ddim50", "ddim50:1", "ddim20", "ddim20:1", "dpm_solver20"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--json", type=Path, default=Path("out/bench_sampler.json"))
    parser.add_argument("--show", action="store_true", help="measure nothing, show the rows that are there")
    args = parser.parse_args(argv)
    for bits in args.bits:
        rules_of(bits)  # refuses what no grid has
    for sampler in args.samplers:
        sampler_of(sampler)
    return args


if __name__ == "__main__":
    main()
