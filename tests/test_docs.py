"""The docstrings of the public names, from which the API's pages are made."""

import importlib
import inspect
import re
import shlex
import subprocess
import sys

import pytest

from tests.helpers import ROOT

COMMAND = next(
    line.split("&& ")[1]
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    if "pdoc --docformat" in line
)
MODULES = [word for word in shlex.split(COMMAND) if word.startswith("common.")]


def public():
    """(name, object, docstring) of all public classes and functions, and their methods."""
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", None) or vars(module):
            thing = getattr(module, name)
            is_own = getattr(thing, "__module__", "") == module.__name__
            if name.startswith("_") or not (is_own or hasattr(module, "__all__")):
                continue
            if not callable(thing):  # a table of names
                continue
            yield f"{module.__name__}.{name}", thing, inspect.getdoc(thing)
            if inspect.isclass(thing):
                for method, its in vars(thing).items():
                    if inspect.isfunction(its) and not method.startswith("_"):
                        doc = its.__doc__ or inspect.getdoc(getattr(thing, method))
                        yield f"{module.__name__}.{name}.{method}", its, doc


@pytest.mark.parametrize("name, thing, doc", [pytest.param(*p, id=p[0]) for p in public()])
def test_a_docstring_explains_every_argument(name, thing, doc):
    assert doc and doc.splitlines()[0].strip().endswith((".", ":")), "a summary comes first"
    parameters = list(inspect.signature(thing).parameters.values())
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for argument in set(named) - {"self", "logs", "epoch", "data", "training"}:
        assert re.search(rf"\b{argument}\b", doc), f"{name}: {argument}"


@pytest.mark.slow
def test_the_pages_show_public_names_only(tmp_path):
    pytest.importorskip("pdoc", reason="needs pip install -e '.[docs]'")
    words = shlex.split(COMMAND)
    words[words.index("-o") + 1] = str(tmp_path)
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
    for module in MODULES:
        page = (tmp_path / f"{module.replace('.', '/')}.html").read_text()
        names = re.findall(r'<section id="([\w.]+)"', page)
        assert names and not [
            n for n in names if any(p.startswith("_") for p in n.split(".")) and "__init__" not in n
        ]
        for heading in ("Args:", "Returns:", "Raises:"):
            assert f"<p>{heading}" not in page  # it is a heading, and not text
