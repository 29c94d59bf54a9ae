"""Time groups against one another: every row is one model, bit widths, method and seed, measured on the integer path.

    python scripts/bench_adpdm.py --model digits --bits W6A6 W4A8 --methods minmax uniform adpdm --seeds 5 --images 256

Rows that the JSON already holds are not measured again, so a run that was stopped goes on. Prints one JSON line: mean
and standard deviation over seeds of each method. `--figure` draws them.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import jaxdq
from jaxdq.calibration import Recipe, observe, search_groups, share_by_price, share_optimally, share_uniformly
from jaxdq.calibration import SearchSettings as Settings
from jaxdq.observers import minmax, minmax_weights, mse
from jaxdq.recipes import default_rules

SEED_OF_EVALUATION = 1_000
FIGURES = ("noise_sqnr_db", "image_psnr_db", "fd_to_float")

# name -> calibrators for G groups; all share the rules and the weights' ranges, so that rows differ in the groups only.
METHODS: dict[str, Callable[[int], tuple]] = {
    "minmax": lambda groups: (observe(minmax()), share_uniformly(1)),
    "uniform": lambda groups: (observe(minmax()), share_uniformly(groups)),
    "one-priced": lambda groups: (observe(mse(2.0)), share_by_price(1)),
    "uniform-priced": lambda groups: (observe(mse(2.0)), share_by_price(groups)),
    "adpdm": lambda groups: (observe(mse(2.0)), search_groups(groups)),
    "adpdm-per-site": lambda groups: (observe(mse(2.0)), search_groups(groups, Settings(per_site=True))),
    "dynamic": lambda groups: (observe(mse(2.0)), share_optimally(groups)),
}


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then summarise."""
    args = parse(argv)
    rows = json.loads(args.json.read_text()) if args.json.exists() else {}
    denoiser = jaxdq.load_denoiser(args.model)
    sampler = jaxdq.ddim(args.steps)
    for bits, method, seed in itertools.product(args.bits, args.methods, range(args.seeds)):
        groups = 1 if method in ("minmax", "one-priced") else args.groups
        name = f"{denoiser.name} {bits} {method} G{groups} S{args.steps} N{args.images} seed{seed}"
        if name in rows:
            continue
        weight_bits, act_bits = (int(digits) for digits in re.findall(r"\d+", bits))
        rules = default_rules(weight_bits, act_bits)
        recipe = Recipe(method, rules, minmax_weights(), METHODS[method](args.groups))
        start = time.perf_counter()
        calib = jaxdq.calibrate(denoiser, recipe, sampler=sampler, key=jax.random.key(seed))
        qparams = jax.jit(jaxdq.quantize)(denoiser.params, calib)
        seconds = time.perf_counter() - start
        key = jax.random.key(SEED_OF_EVALUATION + seed)
        result = jaxdq.evaluate(denoiser, qparams, sampler=sampler, key=key, num_images=args.images)
        rows[name] = {
            "noise_sqnr_db": float(result.noise_sqnr_db.mean()),
            "image_psnr_db": result.image_psnr_db,
            "fd_to_float": result.fd_to_float,
            "fd_float_floor": result.fd_float_floor,
            "calibrate_seconds": seconds,
            "group_of_t": np.asarray(calib.group_of_t).T.tolist() if calib.group_of_t.ndim == 1 else None,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1))
    summary = summarise(rows)
    if args.figure is not None:
        draw(summary, args.figure)
    print(json.dumps({"jax": jax.__version__, "backend": jax.default_backend(), "rows": summary}))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W6A6", "W4A8", "W4A4"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--json", type=Path, default=Path("out/bench_adpdm.json"))
    parser.add_argument("--figure", type=Path)
    return parser.parse_args(argv)


def summarise(rows: dict[str, dict]) -> dict[str, dict]:
    """Mean, standard deviation and number of seeds of every row but for its seed."""
    grouped: dict[str, list[dict]] = {}
    for name, row in rows.items():
        grouped.setdefault(name.rpartition(" seed")[0], []).append(row)
    return {
        name: {
            "seeds": len(group),
            **{
                figure: [round(float(spread([row[figure] for row in group])), 4) for spread in (np.mean, deviation)]
                for figure in (*FIGURES, "fd_float_floor", "calibrate_seconds")
            },
        }
        for name, group in grouped.items()
    }


def deviation(values: list[float]) -> float:
    """The sample standard deviation; 0 of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draw(summary: dict[str, dict], path: Path) -> None:
    """One panel a figure, one bar a row, with the spread over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.2 + 0.28 * len(summary)), layout="constrained")
    names = list(summary)[::-1]
    for axes, quantity in zip(figure.subplots(1, len(FIGURES), sharey=True), FIGURES, strict=True):
        mean, spread = zip(*(summary[name][quantity] for name in names), strict=True)
        axes.barh(names, mean, xerr=spread, color="#4878a8", ecolor="#333333")
        axes.set_title(quantity)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
