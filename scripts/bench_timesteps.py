"""Policies that choose calibration states, by the propagated error of the grids that come of them.

    python scripts/bench_timesteps.py --model digits --bits 6 --budgets 16 --seeds 1

Grids of equal spans are fitted to the chosen states, and priced on all states: the discretisation error of every
activation at every step, times what it costs the image (`jaxdq.calibration.measure_sensitivity`). Prints one JSON line:
budget -> policy -> that error in parts of what grids from all states have, a number for each seed. Policies that draw
nothing at random differ between seeds by what they measure only. What the images say of it is
`bench_adpdm.py --budgets`.
"""

import argparse
import json
import sys

import jax
import models
import numpy as np

import jaxdq
from jaxdq.calibration import (
    Evidence,
    Recipe,
    Sensitivity,
    Work,
    fit_weights,
    measure_sensitivity,
    normal_timesteps,
    observe,
    random_timesteps,
    run_recipe,
    select_timesteps,
    share_by_price,
    structural_risk,
    uniform_timesteps,
    visits_penalised,
)
from jaxdq.calibration.tools.evidence import group_of_step
from jaxdq.calibration.tools.proxy import errors_on
from jaxdq.observers import mse, mse_weights
from jaxdq.recipes import default_rules

POLICIES = {
    "uniform": uniform_timesteps(),
    "random": random_timesteps(),
    "normal": normal_timesteps(),
    "visits": visits_penalised(),
    "risk": structural_risk(),
    "risk alone": structural_risk(redundancy=0.0),
    "redundancy alone": structural_risk(redundancy=1e6),
}
OBSERVER = mse(2.0)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help=models.HELP)
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budgets", type=int, nargs="+", default=[16])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args(argv)
    if min(args.budgets) < args.groups:
        parser.error(f"--budgets has {min(args.budgets)} states for {args.groups} groups; give at least {args.groups}")
    denoiser, share = models.load(args.model), share_by_price(args.groups)
    calibrators = (fit_weights(mse_weights()), observe(OBSERVER), measure_sensitivity(), share)
    recipe = Recipe("all states", default_rules(args.bits, args.bits), calibrators)
    whole = run_recipe(denoiser, recipe, sampler=jaxdq.ddim(args.steps), key=jax.random.key(0))
    unseen, best = whole._replace(facts={}), priced(whole, whole)
    found: dict[str, dict[str, list[float]]] = {}
    for budget in args.budgets:
        for name in args.policies:
            for seed in range(args.seeds):
                key = jax.random.key(seed)
                chosen = observe(OBSERVER)(select_timesteps(POLICIES[name], budget)(unseen, key), key)
                ratio = priced(share(chosen.knowing(whole.fact(Sensitivity)), key), whole) / best
                found.setdefault(str(budget), {}).setdefault(name, []).append(round(ratio, 4))
    print(json.dumps(found))


def priced(work: Work, whole: Work) -> float:
    """The propagated discretisation error of a calibration's grids on the evidence of all states."""
    columns = whole.plan.columns
    error = errors_on(whole.fact(Evidence), np.asarray(work.acts.scale), np.asarray(work.acts.zero_point), columns)
    weight = whole.fact(Sensitivity).of(tuple(name for name, _ in columns))
    return float(np.sum(np.take_along_axis(error, group_of_step(work)[:, None, None], axis=2)[..., 0] * weight))


if __name__ == "__main__":
    try:
        main()
    except jaxdq.InputError as error:
        sys.exit(str(error))
