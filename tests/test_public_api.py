"""What a user can name is documented, and what a docstring shows is true."""

import doctest
import importlib
import inspect
import pkgutil
import re
import types

import pytest

import jaxdq

PUBLIC = {name: value for name, value in vars(jaxdq).items() if not name.startswith("_")}
# Importing a submodule leaves its name on the package; those that are namespaces are documented as modules.
NAMES = {name: value for name, value in PUBLIC.items() if not isinstance(value, types.ModuleType)}
NAMESPACES = ("metrics", "observers", "ops", "recipes")
MEMBERS = {
    f"{namespace}.{name}": value
    for namespace in NAMESPACES
    for name, value in vars(getattr(jaxdq, namespace)).items()
    if not name.startswith("_") and getattr(value, "__module__", "").startswith("jaxdq")
}
CONTRACT = """
    apply calibrate ddim Denoiser load_denoiser quantize restore sample save Scheme QTensor QParams Rule Plan
    Calibration QuantizedParams Recipe InputError
""".split()


def test_the_names_of_the_contract_exist():
    assert set(CONTRACT) <= set(NAMES)
    assert all(isinstance(getattr(jaxdq, namespace), types.ModuleType) for namespace in NAMESPACES)


def test_the_surface_can_be_held_in_mind():
    assert len(NAMES) + len(NAMESPACES) <= 37


@pytest.mark.parametrize("name", sorted(NAMES | MEMBERS))
def test_public_names_are_documented(name):
    value = (NAMES | MEMBERS)[name]
    doc = inspect.getdoc(value) or ""
    twin = re.match(r"The float twin of `(\w+)`", doc)
    if twin:  # takes and returns what the other does
        doc += inspect.getdoc(getattr(jaxdq.ops, twin[1]))
    assert len(doc) > 20 and not doc.startswith(f"{name.split('.')[-1]}("), "a docstring of its own"
    if inspect.isclass(value):
        fields = getattr(value, "_fields", getattr(value, "__dataclass_fields__", ()))
        assert not fields or "Attributes:" in doc
        assert all(f"{field}:" in doc for field in fields if not field.startswith("_")), "every field is explained"
    elif callable(value):
        parameters = inspect.signature(value).parameters
        assert not parameters or "Args:" in doc
        assert all(f"{parameter}:" in doc for parameter in parameters), "every argument is explained"
        returns_nothing = inspect.signature(value).return_annotation in (None, "None")
        assert returns_nothing or "Returns:" in doc


@pytest.mark.parametrize("name", sorted(NAMES | MEMBERS))
def test_public_functions_are_annotated(name):
    value = (NAMES | MEMBERS)[name]
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())


def modules_below(*parts):
    for part in parts:
        module = importlib.import_module(f"jaxdq.{part}")
        yield module.__name__
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{module.__name__}."):
            yield found.name


DOCUMENTED = tuple(modules_below("grid", "ops", "observers", "diffusion", "metrics", "linen", "recipes"))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [test for name in DOCUMENTED for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) > 20
