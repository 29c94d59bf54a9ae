"""The command line: `jaxdq quantize`, `sample`, `evaluate`, `inspect`, `compare`, `bench`.

No decisions here: each command hands its options to a function of the library and prints what comes back. JAX is
imported inside the commands, so that `--help` does not wait for it.
"""

import functools
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jaxdq._common.errors import InputError, InputWarning
from jaxdq._common.folders import write_whole
from jaxdq._common.paths import local_path, path_of, reaching
from jaxdq.app.arguments import pairs
from jaxdq.app.compile_cache import use_compile_cache

app = typer.Typer(
    help="Post-training quantization of diffusion models, as real integers.",
    epilog="quantize, sample and evaluate keep compiled programs for the next call, in ~/.cache/jaxdq/xla and 1 GiB at "
    "most; JAXDQ_COMPILE_CACHE=0 switches that off, and JAX_COMPILATION_CACHE_DIR names another folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a defect keeps its plain traceback
)

Run = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `jaxdq quantize` wrote.")]
_VARIANTS = (
    'One to compare; repeat it. Of float32, bfloat16, W8A8, W4A8, "W8A8 dynamic" and W8A16; all if not given. '
    "bfloat16 with all scores at once is what they are compared with."
)
Classes = Annotated[
    str | None, typer.Option(help="Of a class-conditional model, the classes to draw in turn: 0,5,9. All if not given.")
]
Prompts = Annotated[Path | None, typer.Option(help="Of a text-to-image model: a text file, one prompt a line.")]
Conditions = Annotated[
    Path | None,
    typer.Option(help="What else the network takes: an .npz of rows by name, as `jaxdq inspect` lists them."),
]
_SAMPLER = "ddim, ddpm, dpm_solver, euler, euler_ancestral, lcm or pndm; the model's own if not given."
_FAIL_UNDER = "Exit with 1 where a figure is below this: psnr=30, worst_psnr=18, ssim=0.9, sqnr=30; repeat it."
_ARGUMENTS = "An argument of the recipe, such as budget=64 or learning.num_updates=30; repeat it."
AsJson = Annotated[bool, typer.Option("--json", help="Print only the metrics, as JSON.")]


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from jaxdq._version import __version__

        typer.echo(f"jaxdq {__version__}")
        raise typer.Exit


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="A bundled model, or a folder in diffusers' layout.")],
    recipe: Annotated[str | None, typer.Option(help="A function of jaxdq.recipes, or several: adpdm+tac.")] = None,
    weight_bits: Annotated[int, typer.Option(help="2 to 8.")] = 8,
    act_bits: Annotated[int, typer.Option(help="2 to 8.")] = 8,
    groups: Annotated[int | None, typer.Option(help="Time groups; the recipe's own number if not given.")] = None,
    ranges: Annotated[
        str | None, typer.Option(help="minmax, mse, percentile or learned; the recipe's own choice if not given.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Bits of weights by layer, so that all fits into this share of the float bytes: 0.12x."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=_ARGUMENTS)] = None,
    sampler: Annotated[str | None, typer.Option(help=_SAMPLER)] = None,
    eta: Annotated[float, typer.Option(help="Of ddim: 0 is deterministic, 1 as noisy as ddpm.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    images: Annotated[int, typer.Option(help="Images to evaluate on.")] = 64,
    calibration_images: Annotated[int, typer.Option(help="Images to calibrate on.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    prompts: Prompts = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance, with --prompts.")] = 7.5,
    conditions: Conditions = None,
    classes: Classes = None,
    dtype: Annotated[str | None, typer.Option(help="Of what stays in float: bfloat16 on a TPU.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; named after the options if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize MODEL and write a run folder: checkpoint, metrics.json, samples.png, report.html."""
    use_compile_cache()
    from jaxdq.app import run

    settings = run.Settings(
        model=model,
        recipe=recipe or run.DEFAULT_RECIPE,
        weight_bits=weight_bits,
        act_bits=act_bits,
        groups=groups,
        ranges=ranges,
        budget=budget,
        arguments=pairs(set_ or ()),
        sampler=sampler,
        eta=eta,
        steps=steps,
        seed=seed,
        images=images,
        calibration_images=calibration_images,
        batch_size=batch_size,
        prompts=None if prompts is None else str(prompts),
        guidance=guidance,
        conditions=None if conditions is None else str(conditions),
        dtype=dtype,
        classes=classes,
    )
    out = local_path(out or settings.default_folder)
    metrics = run.quantize_model(settings, out, overwrite=force)
    _show(metrics, as_json)
    if not as_json:
        typer.echo(f"wrote {out}{os.sep} (open {out / 'report.html'})")


@app.command()
def sample(
    folder: Run,
    images: Annotated[int, typer.Option(help="How many.")] = 16,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler; the run's if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    classes: Annotated[
        str | None,
        typer.Option("--class", help="Of a class-conditional model: 7, or 0,5,9 in turn; the run's if not given."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A PNG file; DIR/drawn.png if not given.")] = None,
) -> None:
    """Draw images from the quantized model of a run; the float model is not needed."""
    use_compile_cache()
    from jaxdq.app import report, run

    report.read_metrics(folder)  # refuses what is no run before anything else is looked at
    folder = local_path(folder)
    out, own = local_path(out or folder / "drawn.png"), folder.resolve() / "samples.png"
    if out.suffix.lower() != ".png" or out.is_dir() or not os.access(out.parent, os.W_OK) or out.resolve() == own:
        raise InputError(f"can't write '{out}'; give a new name that ends in .png, in a folder that exists.")
    picture = report.image_grid(run.sample_run(folder, images=images, steps=steps, seed=seed, classes=classes))
    write_whole(out, picture)
    typer.echo(f"wrote {out}")


@app.command()
def evaluate(
    folder: Run,
    model: Annotated[str | None, typer.Option(help="The float model, if it has moved.")] = None,
    images: Annotated[int | None, typer.Option(help="Images to evaluate on; the run's if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler; the run's if not given.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise; the run's if not given.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Of a class-conditional model: 0,5,9; the run's if not given.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="Safetensors of FID's InceptionV3: Fréchet distances in its features.")
    ] = None,
    lpips: Annotated[Path | None, typer.Option(help="Safetensors of LPIPS: that distance too.")] = None,
    fail_under: Annotated[list[str] | None, typer.Option(help=_FAIL_UNDER)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run again, or on other noise, with more images or steps. The run folder stays as it is."""
    use_compile_cache()
    from jaxdq.app import run
    from jaxdq.app.gate import parse_limits, shortfalls

    limits = parse_limits(fail_under or ())
    found = run.evaluate_run(
        folder,
        model=model,
        images=images,
        steps=steps,
        seed=seed,
        classes=classes,
        inception=inception,
        lpips=lpips,
    )
    _show(found, as_json)
    if short := shortfalls(found, limits):
        typer.echo(f"jaxdq: {'; '.join(short)}.", err=True)
        raise typer.Exit(1)


@app.command()
def inspect(
    what: Annotated[
        str, typer.Argument(metavar="DIR|MODEL", help="A run folder, a checkpoint, a bundled model or a model folder.")
    ],
    sites: Annotated[bool, typer.Option("--sites", help="Of a model too, list every site.")] = False,
) -> None:
    """Show a run with its plan; or, of a model, what would be quantized and what that saves. No weights are read."""
    from jaxdq.app import inspection, report
    from jaxdq.app.tables import tables_of_inspection
    from jaxdq.checkpoint import MANIFEST, restore

    place = path_of(what)
    with reaching(place):
        is_run = (place / report.METRICS).exists() or (place / report.QUANTIZED).exists()
        is_checkpoint = (place / MANIFEST).exists()
    if is_run:
        metrics, plan = report.read_metrics(what), restore(place / report.QUANTIZED).plan
        _show(metrics, as_json=False)
        typer.echo(f"\n{plan}")
        return
    if is_checkpoint:
        typer.echo(str(restore(what).plan))
        return
    found = inspection.inspect_model(what)
    Console().print(tables_of_inspection(found))
    if sites:
        typer.echo(str(found.plan))
    else:
        typer.echo(f"--sites lists all {len(found.plan.sites)} sites.")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders.")],
    as_json: AsJson = False,
) -> None:
    """Put runs side by side."""
    from jaxdq.app import report
    from jaxdq.app.tables import table_of_runs

    runs = [report.read_metrics(folder) for folder in folders]
    if as_json:
        rows = [{"folder": str(folder), **metrics} for folder, metrics in zip(folders, runs, strict=True)]
        typer.echo(json.dumps(rows, indent=1, allow_nan=False))
    else:
        Console().print(table_of_runs(runs, [str(folder) for folder in folders]))


@app.command()
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model, or a folder in diffusers' layout.")],
    platform: Annotated[
        str, typer.Option(help="cpu, gpu or tpu, measured there; or tpu:v5e or tpu:v6e, modelled without one.")
    ] = "cpu",
    batch_size: Annotated[int, typer.Option(help="Rows of the batch.")] = 8,
    variant: Annotated[list[str] | None, typer.Option(help=_VARIANTS)] = None,
    rounds: Annotated[int, typer.Option(help="Calls of each variant that are timed.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Compare the speed of a model in float and on integers, here or on a TPU that is not at hand."""
    from jaxdq.app.tables import tables_of_bench
    from jaxdq.cost.bench import bench_model

    found = bench_model(model, platform=platform, batch_size=batch_size, variants=variant or (), rounds=rounds)
    if as_json:
        typer.echo(json.dumps(found, indent=1, allow_nan=False))
    else:
        Console().print(tables_of_bench(found))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; what the input is at fault for is one sentence and exit code 2.

    Args:
        argv: The words after `jaxdq`; None takes the process's.
    """
    # What a scheduler sends: leave as after an interrupt, with nothing half-written behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    shown = warnings.showwarning
    warnings.showwarning = functools.partial(_show_warning, shown)
    try:
        app(args=None if argv is None else list(argv), prog_name="jaxdq")
    except InputError as error:
        typer.echo(f"jaxdq: {error}", err=True)
        sys.exit(2)
    finally:
        warnings.showwarning = shown


def _show_warning(otherwise: Callable, message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Ours in a sentence, as errors are; those of other packages as Python shows them."""
    if issubclass(category, InputWarning):
        typer.echo(f"jaxdq: warning: {message}", err=True)
    else:
        otherwise(message, category, *place)


def _show(metrics: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(metrics, indent=1, allow_nan=False))
    else:
        from jaxdq.app import report
        from jaxdq.app.tables import table_of_runs

        Console().print(table_of_runs([metrics], [Path(metrics["model"]).name]))
        conditions = report.seen(metrics)
        if conditions is not None:
            typer.echo(conditions)
        for note in metrics.get("notes", ()):
            typer.echo(note)


if __name__ == "__main__":
    main()
