"""The tests with the oldest and newest dependencies, lint, simulator and interop: ``nox -l`` lists them."""

from __future__ import annotations

import nox
from packaging.requirements import Requirement

nox.options.sessions = ["lint", "tests"]
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
EXTRAS = PROJECT["optional-dependencies"]


def oldest(requirements: list[str]) -> list[str]:
    """Pin each requirement that has a lower bound to that bound."""
    pins = []
    for requirement in map(Requirement, requirements):
        lower = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        pins += [f"{requirement.name}=={bound}" for bound in lower]
    return pins


@nox.session
@nox.parametrize("versions", ["minimum", "newest"], ids=["minimum", "newest"])
def tests(session: nox.Session, versions: str) -> None:
    """Run the suite on NumPy arrays with the least or the newest versions that pyproject.toml allows."""
    pins = oldest(PROJECT["dependencies"] + EXTRAS["models"] + EXTRAS["test"])
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"]
    session.install(".[test]", *(pins if versions == "minimum" else upgrade))
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, mypy, and the checks of docstrings and tables."""
    session.install(".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("python", ".ci/docstrings.py")
    session.run("python", "benchmarks/report.py", "--check")


@nox.session
def simulator(session: nox.Session) -> None:
    """Run the GPU kernels in numba-cuda's simulator."""
    session.install(".[simulator]")
    session.run("pytest", "--backend", "cudasim", *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """Prove what is written and computed against transformers and compressed-tensors."""
    session.install(".[interop]")
    session.run("pytest", "tests/interop", *session.posargs)
