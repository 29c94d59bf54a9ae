"""Time groups against one another: every row is one model, bit widths, method and seed, measured on the integer path.

    python scripts/bench_adpdm.py --model digits --bits W6A6 W4A8 --methods minmax uniform adpdm --seeds 5 --images 256

Rows that the JSON already holds with the same settings of the loops are not measured again, so a run that was stopped
goes on. All rows of a seed share the float trajectories that they are measured on. Prints one JSON line: mean and
standard deviation over seeds of each row. `--figure` draws them; `--groups` and `--budgets` take several values.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxdq
from jaxdq.calibration import (
    Calibrator,
    RangeSettings,
    Recipe,
    SearchSettings,
    Work,
    learn_ranges,
    measure_sensitivity,
    normal_timesteps,
    observe,
    plan_for,
    random_timesteps,
    run_recipe,
    search_groups,
    select_timesteps,
    share_by_price,
    share_optimally,
    share_uniformly,
    structural_risk,
    uniform_timesteps,
    visits_penalised,
    weight_ranges,
)
from jaxdq.evaluation import noise_sqnr_per_step_db
from jaxdq.metrics import frechet_distance, pooled_pixels, psnr_db
from jaxdq.observers import minmax, minmax_weights, mse, mse_weights
from jaxdq.recipes import default_rules
from jaxdq.sampling import Trajectories, sample, trajectories

SEED_OF_EVALUATION = 1_000
FIGURES = ("noise_sqnr_db", "image_psnr_db", "fd_to_float")
COLORS = ("#4878a8", "#d98b3a", "#5a9e6f", "#a85a5a")  # a bit width each
NOISE_IMAGES = 64  # of those that images are compared on


class Method(NamedTuple):
    """How the ranges of G groups come about."""

    calibrators: Callable[[int], tuple[Calibrator, ...]]
    num_groups: int | None = None
    plain: bool = False  # min-max ranges, of weights too


METHODS = {
    "minmax": Method(lambda groups: (share_uniformly(groups),), 1, plain=True),
    "uniform": Method(lambda groups: (share_uniformly(groups),), plain=True),
    "one-priced": Method(lambda groups: (share_by_price(groups),), 1),
    "uniform-priced": Method(lambda groups: (share_by_price(groups),)),
    "dynamic-priced": Method(lambda groups: (share_optimally(groups),)),
    "adpdm-priced": Method(lambda groups: (search_groups(groups),)),
    "one-learned": Method(lambda groups: (share_by_price(groups), learn_ranges()), 1),
    "uniform-learned": Method(lambda groups: (share_by_price(groups), learn_ranges())),
    "dynamic": Method(lambda groups: (share_optimally(groups), learn_ranges())),
    "adpdm": Method(lambda groups: (search_groups(groups), learn_ranges())),
    "adpdm-per-site": Method(lambda groups: (search_groups(groups, SearchSettings(per_site=True)), learn_ranges())),
}
POLICIES = {
    "uniform": uniform_timesteps,
    "random": random_timesteps,
    "normal": normal_timesteps,
    "risk": structural_risk,
    "visits": visits_penalised,
}


# What the loops are told: rows of other settings are measured again.
SETTINGS = {"search": dataclasses.asdict(SearchSettings()), "ranges": dataclasses.asdict(RangeSettings())}


class Reference(NamedTuple):
    """The float model's images, and as many from other noise."""

    data: Trajectories
    floor: np.ndarray


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then summarise."""
    args = parse(argv)
    rows = json.loads(args.json.read_text()) if args.json.exists() else {}
    denoiser = jaxdq.load_denoiser(args.model)
    sampler = jaxdq.ddim(args.steps)
    for seed in range(args.seeds):
        reference = functools.cache(functools.partial(reference_of, denoiser, sampler, seed, args.images))
        prepare = functools.cache(functools.partial(prepared, denoiser, sampler, seed))
        for bits, name, groups, budget in itertools.product(args.bits, args.methods, args.groups, args.budgets):
            method = METHODS[name]
            groups = method.num_groups or groups
            label = f"{denoiser.name} {bits} {name} G{groups} {budget} S{args.steps} N{args.images} seed{seed}"
            if label in rows and rows[label]["settings"] == SETTINGS:
                continue
            # A policy may look at the grids; all states are the same for all bit widths.
            work, seconds_before = prepare(method.plain, budget, "W8A8" if budget == "all" else bits)
            start = time.perf_counter()
            work = with_bits(work, bits, method)
            for index, calibrator in enumerate(method.calibrators(groups)):
                work = calibrator(work, jax.random.fold_in(jax.random.key(seed), index))
            qparams = jax.jit(jaxdq.quantize)(denoiser.params, work.calib)
            seconds = time.perf_counter() - start
            found = {
                "prepare_seconds": seconds_before,
                "calibrate_seconds": seconds,
                "settings": SETTINGS,
                "jax": jax.__version__,
                "log": [[name, numbers_of(log)] for name, log in work.log],
            }
            rows[label] = {**measured(denoiser, sampler, seed, qparams, reference()), **found}
            write(args.json, rows)
    summary = summarise(rows)
    if args.figure is not None:
        draw(summary, args.figure)
    print(json.dumps({"jax": jax.__version__, "backend": jax.default_backend(), "rows": summary}))


def write(path: Path, rows: dict[str, dict]) -> None:
    """All rows, or those of before: a kill leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=1))
    part.replace(path)


def numbers_of(log: dict[str, Any]) -> dict[str, Any]:
    """A calibrator's log, and of each update's numbers the last."""
    return {**log, "updates": {name: values[-1:] for name, values in log.get("updates", {}).items()}}


def key_of_images(seed: int) -> jax.Array:
    """Noise that calibration never saw."""
    return jax.random.key(SEED_OF_EVALUATION + seed)


def reference_of(denoiser: Any, sampler: Any, seed: int, num_images: int) -> Reference:
    """What all rows of one seed are measured against."""
    draw = functools.partial(sample, denoiser, denoiser.params, sampler=sampler, num_images=num_images)
    data = trajectories(denoiser, denoiser.params, sampler=sampler, num_images=num_images, key=key_of_images(seed))
    return Reference(data, np.asarray(draw(key=jax.random.fold_in(key_of_images(seed), 1))))


def prepared(denoiser: Any, sampler: Any, seed: int, plain: bool, budget: str, bits: str) -> tuple[Work, float]:
    """What comes before ranges are shared (trajectories, evidence, sensitivity), and the seconds it took."""
    start = time.perf_counter()
    selection: tuple[Calibrator, ...] = ()
    if budget != "all":
        policy, _, states = budget.partition(":")
        selection = (select_timesteps(POLICIES[policy](), int(states)),)
    evidence = (observe(minmax()),) if plain else (observe(mse(2.0)), measure_sensitivity())
    recipe = Recipe(
        "prepared", default_rules(*widths(bits)), minmax_weights(), (*selection, *evidence, share_uniformly(1))
    )
    work = run_recipe(denoiser, recipe, sampler=sampler, key=jax.random.key(seed))
    return work, time.perf_counter() - start


def widths(bits: str) -> tuple[int, int]:
    """Of weights and of activations."""
    found = re.fullmatch(r"W(\d)A(\d)", bits)
    if found is None:
        raise SystemExit(f"--bits has '{bits}'; give them as W4A8.")
    return int(found[1]), int(found[2])


def budget_of(text: str) -> str:
    """`all`, or POLICY:STATES."""
    if text != "all" and re.fullmatch(f"({'|'.join(POLICIES)}):[1-9][0-9]*", text) is None:
        raise argparse.ArgumentTypeError(f"'{text}' is neither 'all' nor POLICY:STATES such as risk:200")
    return text


def with_bits(work: Work, bits: str, method: Method) -> Work:
    """The same evidence under another plan."""
    weight_range = minmax_weights() if method.plain else mse_weights()
    recipe = Recipe("bits", default_rules(*widths(bits)), weight_range, ())
    plan = plan_for(work.denoiser, recipe)
    return work._replace(plan=plan, weights=weight_ranges(work.denoiser.params, plan, weight_range), log=())


def measured(denoiser: Any, sampler: Any, seed: int, qparams: Any, reference: Reference) -> dict[str, float]:
    """The figures of one row."""
    data = reference.data
    noise_sqnr_db = noise_sqnr_per_step_db(denoiser, qparams, data.first(NOISE_IMAGES))
    images = sample(denoiser, qparams, sampler=sampler, num_images=data.num_images, key=key_of_images(seed))
    error = np.mean((np.asarray(images, np.float64) - data.images) ** 2, axis=(1, 2, 3))
    features = pooled_pixels(data.images)
    return {
        "noise_sqnr_db": float(noise_sqnr_db.mean()),
        "image_psnr_db": float(psnr_db(data.images, images)),
        "median_image_psnr_db": float(10 * np.log10(4 / np.median(error))),
        "fd_to_float": frechet_distance(features, pooled_pixels(images)),
        "fd_float_floor": frechet_distance(features, pooled_pixels(reference.floor)),
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W6A6", "W4A8", "W4A4"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--groups", type=int, nargs="+", default=[8])
    parser.add_argument(
        "--budgets", nargs="+", type=budget_of, default=["all"], help="all, or POLICY:STATES such as risk:200"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--json", type=Path, default=Path("out/bench_adpdm.json"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args(argv)
    for bits in args.bits:
        default_rules(*widths(bits))  # refuses what no grid has
    if not 1 <= min(args.groups) <= max(args.groups) <= args.steps:
        parser.error(f"--groups has {args.groups} and the sampler {args.steps} steps; give 1 to {args.steps}")
    return args


def summarise(rows: dict[str, dict]) -> dict[str, dict]:
    """Mean, standard deviation and number of seeds of every row but for its seed, of these settings only."""
    grouped: dict[str, list[dict]] = {}
    for name, row in rows.items():
        if row["settings"] == SETTINGS:
            grouped.setdefault(name.rpartition(" seed")[0], []).append(row)
    return {
        name: {
            "seeds": len(group),
            **{
                figure: [round(float(spread([row[figure] for row in group])), 4) for spread in (np.mean, deviation)]
                for figure in (
                    *FIGURES,
                    "median_image_psnr_db",
                    "fd_float_floor",
                    "prepare_seconds",
                    "calibrate_seconds",
                )
            },
        }
        for name, group in grouped.items()
    }


def deviation(values: list[float]) -> float:
    """The sample standard deviation; 0 of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draw(summary: dict[str, dict], path: Path) -> None:
    """One panel a figure, one bar a row, with the spread over seeds; what all rows have in common is the title."""
    from matplotlib.figure import Figure

    rows = sorted(summary, key=order)
    parts = [in_words(row) for row in rows]
    in_common = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    shared = ", ".join(itertools.compress(parts[0], in_common))
    own = [", ".join(part for part, same in zip(row, in_common, strict=True) if not same) for row in parts]
    colors = dict(zip(dict.fromkeys(row.split()[1] for row in rows), itertools.cycle(COLORS)))

    figure = Figure(figsize=(12, 1.2 + 0.25 * len(rows)), layout="constrained")
    figure.suptitle(f"{shared}, mean and standard deviation over seeds")
    titles = ("noise SQNR (dB)", "image PSNR (dB)", "Fréchet distance to float")
    for axes, quantity, title in zip(figure.subplots(1, len(FIGURES), sharey=True), FIGURES, titles, strict=True):
        mean, spread = zip(*(summary[row][quantity] for row in rows), strict=True)
        axes.barh(own, mean, xerr=spread, color=[colors[row.split()[1]] for row in rows], ecolor="#333333")
        axes.set_title(title)
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
        axes.spines[["top", "right"]].set_visible(False)
        if quantity == "fd_to_float":
            axes.set_xscale("log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def order(row: str) -> tuple:
    """Rows from many bits to few, methods as listed above, groups by number."""
    model, bits, method, groups, budget, *rest = row.split()
    weight_bits, act_bits = widths(bits)
    return model, -act_bits, -weight_bits, budget != "all", list(METHODS).index(method), budget, int(groups[1:]), rest


def in_words(row: str) -> list[str]:
    """What a row is, for people."""
    model, bits, method, groups, budget, steps, images = row.split()
    policy, _, states = budget.partition(":")
    number = int(groups[1:])
    return [
        model,
        f"{bits} {method}",
        f"{number} group{'s' * (number > 1)}",
        f"{states} states ({policy})" if states else "all states",
        f"{steps[1:]} steps",
        f"{images[1:]} images",
    ]


if __name__ == "__main__":
    try:
        main()
    except jaxdq.InputError as error:
        sys.exit(str(error))
