"""How fast models run in float and on integers: the table of scripts/results, on this machine or modelled for TPUs.

    python scripts/bench_lowering.py --models digits v1-4 --batches 2 8 --platforms tpu:v5e

Every row is one `jaxdq bench` of a model, a batch and a platform. Models are those of `count_stable_diffusion.py`,
known by their configuration (no weights are read), or what `jaxdq bench` takes. Rows that the JSON holds are not
made again. Prints one JSON line: milliseconds, and in brackets how many times as fast as bfloat16 with whole scores.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from bench_stable_diffusion import SCHEDULER
from count_stable_diffusion import MODELS

from jaxdq.cost.bench import BASELINE, bench_model

RESULTS = Path(__file__).parent / "results" / "bench_lowering.json"


def main(argv: list[str] | None = None) -> None:
    """Make the rows that are missing and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits", "v1-4"])
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--platforms", nargs="+", default=["tpu:v5e"])
    parser.add_argument("--variants", nargs="+", default=["bfloat16", "W8A8", "W4A8", "W8A16"])
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    rows: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    for model, batch, platform in itertools.product(args.models, args.batches, args.platforms):
        key = f"{model} batch {batch} {platform}"
        if key not in rows or set(args.variants) - set(rows[key]["rows"]):
            wanted = list(dict.fromkeys((*rows.get(key, {"rows": {}})["rows"], *args.variants)))  # all in one run
            rows[key] = {**bench(model, batch, platform, wanted), "model": model}
            args.json.parent.mkdir(parents=True, exist_ok=True)
            part = args.json.with_suffix(".part")
            part.write_text(json.dumps(rows, indent=1) + "\n")
            part.replace(args.json)
    shown = {
        key: {name: f"{figures['milliseconds']:.3g} ({figures['ratio']:.2f})" for name, figures in row["rows"].items()}
        for key, row in rows.items()
    }
    print(json.dumps({"baseline": BASELINE, "rows": shown}))


def bench(model: str, batch: int, platform: str, variants: list[str]) -> dict[str, Any]:
    """One row; a Stable Diffusion is written as a folder of configurations first."""
    options: dict[str, Any] = {"platform": platform, "batch_size": batch, "variants": variants}
    if model not in MODELS:
        return bench_model(model, **options)
    with tempfile.TemporaryDirectory() as folder:
        configs = {
            "unet/config.json": {"_class_name": "UNet2DConditionModel", **MODELS[model]},
            "scheduler/scheduler_config.json": SCHEDULER,
        }
        for name, config in configs.items():
            path = Path(folder) / name
            path.parent.mkdir()
            path.write_text(json.dumps(config))
        return bench_model(folder, **options)


if __name__ == "__main__":
    main()
