"""Promises that the whole repository keeps: layers, names, locks, cheap imports, safe files, true documentation."""

from __future__ import annotations

import ast
import inspect
import os
import re
import resource
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pytest_socket import SocketConnectBlockedError

import openbrainmass

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "openbrainmass"
MODULES = sorted(SOURCE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERBS = {
    "demo",
    "run",
    "cohort",
    "export",
    "bridge",
    "fetch",
    "pretrain",
    "embed",
    "evaluate",
    "audit",
    "leaderboard",
    "explain",
    "report",
    "datasets",
    "weights",
    "tasks",
    "convert",
}


def _name(module: Path) -> str:
    return str(module.relative_to(SOURCE))


def _python(program: str, *arguments: str) -> str:
    # Coverage would be loaded into the child and count as its imports.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# Layers and names


def test_imports_point_down() -> None:
    # In a process of its own: import-linter sets up logging anew, which silences the loggers of other tests.
    check = "import sys; from importlinter.cli import lint_imports as lint; sys.exit(lint(sys.argv[1], no_cache=True))"
    call = [sys.executable, "-c", check, str(ROOT / "pyproject.toml")]
    ended = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_no_public_name_is_imported_from_the_package_itself(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        # A public name imported from the top would reach up around the layers.
        if isinstance(node, ast.ImportFrom) and node.module == "openbrainmass":
            reached = {alias.name for alias in node.names} - {"__version__"}
            assert not reached & set(openbrainmass.__all__)
        if isinstance(node, ast.Import):
            assert "openbrainmass" not in {alias.name for alias in node.names}


def test_the_layers_are_those_of_the_architecture() -> None:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    assert contract["exhaustive"] is True
    written = re.search(r"^    (cli > .*)$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert written is not None
    assert written[1].split(" > ") == contract["layers"]


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_a_module_is_a_noun_of_the_field_and_short(module: Path) -> None:
    assert not {"utils", "util", "common", "core", "helpers", "misc"} & {
        part.removesuffix(".py") for part in module.parts
    }
    assert len(module.read_text().splitlines()) <= 600


def test_cohorts_and_evaluation_run_without_torch() -> None:
    modules = [
        ".".join(("openbrainmass", *path.relative_to(SOURCE).with_suffix("").parts))
        for path in MODULES
        if path.relative_to(SOURCE).parts[0] in {"cohort", "evaluation"} and path.name != "__init__.py"
    ]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print('torch' in sys.modules, 'openbrainmass.model' in sys.modules)"
    )
    assert _python(program, *modules).split() == ["False", "False"]


# Public names


def _section(documentation: str, title: str) -> str:
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", documentation, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _documented(documentation: str) -> set[str]:
    lines = _section(documentation, "Parameters") + "\n" + _section(documentation, "Attributes")
    return {
        name.strip(" *")
        for line in lines.splitlines()
        if line and not line.startswith(" ")
        for name in line.split(":")[0].split(",")
    }


def _parameters(thing: object) -> set[str]:
    if not callable(thing) or (isinstance(thing, type) and issubclass(thing, BaseException)):
        return set()
    # The fields of a settings class carry their own documentation.
    if hasattr(thing, "model_fields"):
        return set()
    return {name for name in inspect.signature(thing).parameters if name not in {"self", "args", "kwargs"}}


@pytest.mark.parametrize("name", [name for name in openbrainmass.__all__ if name != "__version__"])
def test_a_public_name_is_documented(name: str) -> None:
    thing = getattr(openbrainmass, name)
    if not callable(thing):
        return
    documentation = inspect.getdoc(thing) or ""
    assert re.match(r"[A-Z`].*\.(\s|$)", documentation, re.DOTALL), f"{name} has no summary sentence"
    missing = _parameters(thing) - _documented(documentation)
    assert not missing, f"the docstring of {name} says nothing of {sorted(missing)}"


@pytest.mark.parametrize("name", [name for name in openbrainmass.__all__ if name != "__version__"])
def test_a_public_name_is_in_the_api_page(name: str) -> None:
    assert f"`{name}" in (ROOT / "docs" / "api.md").read_text()


def test_type_checkers_see_the_names_that_python_sees() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    seen = {
        alias.name: node.module.removeprefix("openbrainmass.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openbrainmass.")
        for alias in node.names
    }
    assert seen == openbrainmass._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert set(openbrainmass.__all__) == set(dir(openbrainmass))
    with pytest.raises(AttributeError, match="no attribute 'brainmas'"):
        _ = openbrainmass.brainmas


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert openbrainmass.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


# Cheap imports and the command line


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert (
        _python("import sys, openbrainmass; print({'numpy', 'pandas', 'torch'} & set(sys.modules))").strip() == "set()"
    )


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    program = (
        "import sys; sys.argv = ['openbrainmass', '--help']\n"
        "from openbrainmass.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'pandas', 'torch', 'nilearn', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    assert _python(program).strip().endswith("heavy: []")

    def seconds() -> float:
        # Processor time, because a busy machine is not a slow program.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _python(program)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def _commands() -> dict[str, object]:
    from typer.main import get_command

    from openbrainmass.cli import app

    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_verbs_are_those_of_the_design() -> None:
    assert set(_commands()) == VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_help_of_a_verb_has_an_example_of_it(verb: str) -> None:
    command = _commands()[verb]
    assert f"openbrainmass {verb}" in f"{command.help} {command.epilog}"  # type: ignore[attr-defined]


# Files: written whole, never executed


def _calls(module: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call with the names of its owner and of what is called: ``np.save(...)`` gives ``np`` and ``save``."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node, ast.unparse(node.func.value), node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node, "", node.func.id


def _opens_for_writing(call: ast.Call, owner: str, called: str) -> bool:
    if called != "open":
        return False
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return any(re.fullmatch(r"[rwaxbt+]{1,4}", mode) and set(mode) & set("wax+") for mode in modes)


@pytest.mark.parametrize("module", [module for module in MODULES if module.name != "durable.py"], ids=_name)
def test_only_durable_writes_files(module: Path) -> None:
    writers = [
        f"line {call.lineno}: {owner}.{called}"
        for call, owner, called in _calls(module)
        if _opens_for_writing(call, owner, called)
        or (called in {"write_text", "write_bytes"} and owner not in {"", "durable"})
        or (called in {"save", "savez", "savetxt"} and owner in {"np", "torch"})
        or (called == "dump" and owner in {"json", "joblib"})
    ]
    assert not writers


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_nothing_is_unpickled(module: Path) -> None:
    for call, owner, called in _calls(module):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (owner, called) == ("torch", "load"):
            assert keywords.get("weights_only") == "True", f"line {call.lineno}"
        if owner in {"np", "numpy"} and called == "load":
            assert keywords.get("allow_pickle") == "False", f"line {call.lineno}"
        assert owner not in {"joblib", "dill", "cloudpickle"} or called not in {"load", "loads"}, f"line {call.lineno}"
        assert owner != "pickle" or called not in {"load", "loads", "Unpickler"}, f"line {call.lineno}"
        assert called not in {"read_pickle", "Unpickler"}, f"line {call.lineno}"


# Locks


def _locked(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def _names(requirements: list[str]) -> set[str]:
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_a_lock_has_hashes_and_neither_torch_nor_an_index(file: str) -> None:
    text = (ROOT / file).read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert len(entries) == len(_locked(file))
    assert not [name for name in _locked(file) if name.startswith(("torch", "nvidia", "triton", "cuda"))]
    assert "index" not in re.sub(r"^\S+==", "", text, flags=re.MULTILINE)
    assert "//" not in text


def test_the_locks_hold_every_dependency() -> None:
    project = PROJECT["project"]
    locked, locked_dev = _locked("requirements.txt"), _locked("requirements-dev.txt")
    assert _names(project["dependencies"]) - {"torch"} <= set(locked)
    assert _names(PROJECT["build-system"]["requires"]) <= set(locked)
    assert _names(project["optional-dependencies"]["dev"]) <= set(locked_dev)
    assert locked.items() <= locked_dev.items()


def test_the_locks_hold_what_torch_needs_on_a_cpu() -> None:
    needed = {name for name in _names(requires("torch") or []) if not name.startswith(("nvidia", "triton", "cuda"))}
    assert needed <= set(_locked("requirements.txt"))


def test_torch_is_the_pinned_one() -> None:
    pinned = re.search(r"^TORCH := torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pinned is not None
    assert torch.__version__.split("+")[0] == pinned[1]


# Portability


def _texts() -> list[Path]:
    folders = ["src", "tests", "docs", "benchmarks", "examples", ".ci"]
    inside = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if not _cached(path.relative_to(ROOT / folder))
    ]
    top = [
        path
        for path in ROOT.iterdir()
        if path.suffix in {".md", ".toml", ".txt", ".cff", ".yaml"} or path.name == "Makefile"
    ]
    return sorted(
        path for path in [*inside, *top] if path.is_file() and path.suffix not in {".png", ".npy", ".safetensors"}
    )


def _cached(path: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in path.parts)


# Written in halves, so that this file does not find itself.
PLACES = [start + rest for start, rest in (("/w", "ork/"), ("/r", "oot/"), ("/h", "ome/"), ("/o", "pt/"))]
PLACES += [start + rest for start, rest in (("pypi", ".org"), ("python", "hosted"), ("download", ".pytorch"))]


@pytest.mark.parametrize("path", _texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_a_place_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [place for place in PLACES if place in text]


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_a_test_reaches_this_machine_but_no_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    with pytest.raises(SocketConnectBlockedError):
        # An address that is reserved for documentation.
        socket.create_connection(("192.0.2.1", 80), timeout=1)
