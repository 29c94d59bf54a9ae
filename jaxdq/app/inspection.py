"""What a model is and what quantization would make of it, told from shapes: no weight is read, nothing is computed."""

import inspect
import math
from typing import NamedTuple

import jax

from jaxdq import recipes
from jaxdq.app.report import planned_bytes
from jaxdq.calibration import plan_for
from jaxdq.diffusion import Denoiser
from jaxdq.grid import stored_bytes
from jaxdq.linen import Plan, SitePlan, make_plan
from jaxdq.models.unet import ModelFiles, describe, load_denoiser


class SiteRow(NamedTuple):
    """Sites that run in one way.

    Attributes:
        runs_as: "W8A8", "W8, float inputs" or "float".
        what: The kind of layer, or why it does not run on integers.
        paths: Paths of the sites.
        num_params: Number of params in their kernels.
        mac_fraction: Share of the network's multiply-accumulates.
    """

    runs_as: str
    what: str
    paths: tuple[str, ...]
    num_params: int
    mac_fraction: float

    @property
    def is_integer(self) -> bool:
        """Whether these sites' contractions run on integers."""
        return "A" in self.runs_as


class Inspection(NamedTuple):
    """What quantization would make of a model.

    Attributes:
        denoiser: The float model, its params abstract.
        plan: What the recipes do at 8 bits, unless told otherwise.
        bytes_at: "W8" or "W4" -> bytes of the quantized params, with one time group.
        files: What lies on disk; None where the model came from no files.
    """

    denoiser: Denoiser
    plan: Plan
    bytes_at: dict[str, int]
    files: ModelFiles | None = None

    @property
    def num_params(self) -> int:
        """Numbers in the float params."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.denoiser.params))

    @property
    def float32_bytes(self) -> int:
        """Bytes of the float params."""
        return stored_bytes(self.denoiser.params)

    @property
    def num_products(self) -> int:
        """Contractions of two arrays, such as the two of each attention."""
        return sum(site.site.kind == "product" for site in self.plan.sites)

    @property
    def mac_fraction_with_products(self) -> float:
        """`plan.integer_mac_fraction`, had a rule put the products that can on integers too."""
        able = [
            site.site.macs
            for site in self.plan.sites
            if site.is_integer or (site.site.kind == "product" and not site.site.unsupported)
        ]
        return sum(able) / max(1, sum(site.site.macs for site in self.plan.sites))

    @property
    def takes(self) -> tuple[str, ...]:
        """What the network is given beside the image and the time: "encoder_hidden_states 77 x 768"."""
        module = self.denoiser.module
        names = self.denoiser.condition_names or list(inspect.signature(type(module).__call__).parameters)[3:]
        shapes = self.denoiser.abstract_args(1)
        sizes = (" x ".join(map(str, shape.shape[1:])) for shape in shapes)
        return tuple(f"{name} {size}".rstrip() for name, size in zip(names, sizes, strict=False))

    def site_rows(self) -> list[SiteRow]:
        """The plan in groups: what runs on integers by kind of layer, then the rest by reason."""
        groups: dict[tuple[str, str], list[SitePlan]] = {}
        for site in sorted(self.plan.sites, key=lambda site: not site.is_integer):
            groups.setdefault((_runs_as(site), _what(site)), []).append(site)
        total = max(1, sum(site.site.macs for site in self.plan.sites))
        return [
            SiteRow(
                *names,
                tuple(site.path for site in sites),
                sum(math.prod(site.site.shape) for site in sites if site.site.kind != "product"),
                sum(site.site.macs for site in sites) / total,
            )
            for names, sites in groups.items()
        ]


def inspect_model(model: str) -> Inspection:
    """What a model on disk is and what the recipes would quantize of it; its weights stay unread.

    Args:
        model: What `jaxdq.load_denoiser` takes; weights that are missing, damaged or of another network are reported,
            and are no error.

    Raises:
        InputError: No such model, or one that jaxdq does not support.
    """
    denoiser = load_denoiser(model, weights=False)
    return inspection_of(denoiser)._replace(files=describe(model, denoiser.params))


def inspection_of(denoiser: Denoiser) -> Inspection:
    """What quantization would make of a denoiser, whose params and conditions may be abstract."""
    plan = plan_for(denoiser, recipes.uniform_groups(weight_bits=8, act_bits=8))
    bytes_at = {"W8": planned_bytes(denoiser.params, plan)}
    sites = tuple(site.site for site in plan.sites)  # found by tracing the network, which need not be done twice
    bytes_at["W4"] = planned_bytes(
        denoiser.params, make_plan(recipes.uniform_groups(weight_bits=4).rules(sites), sites)
    )
    return Inspection(denoiser, plan, bytes_at)


def _runs_as(site: SitePlan) -> str:
    if site.weight is None and site.act is None:
        return "float"
    weight = "" if site.weight is None else f"W{site.weight.bits}"
    return f"{weight}A{site.act.bits}" if site.act is not None else f"{weight}, float inputs"


def _what(site: SitePlan) -> str:
    names = {"conv": "convolutions", "dense": "dense layers", "product": "products of attention"}
    return names[site.site.kind] if site.is_integer else site.reason
