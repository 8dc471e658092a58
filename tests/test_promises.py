"""docs/protocol.md names the tests that prove each promise: they must exist, and notice when it is broken."""

import ast
import re
from typing import TypeGuard

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, mutated

PROMISES = range(1, 9)
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")


def proofs(promise: int) -> set[str]:
    """The tests named for a promise, as `file.py::test`, or `file.py` for all of it."""
    found = re.search(rf"^### Promise {promise}\b.*?(?=^##)", PROTOCOL, re.MULTILINE | re.DOTALL)
    assert found, f"promise {promise} is not in docs/protocol.md"
    return set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", found[0]))


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_names_tests_that_exist(promise: int) -> None:
    named = proofs(promise)
    assert named
    for name in named:
        file, _, test = name.partition("::")
        functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))) if is_function(node)}
        assert not test or test in functions, name


def is_function(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_has_a_mutant_that_its_tests_must_catch(promise: int) -> None:
    mutants = [mutant for mutant in MUTANTS if mutant.promise == promise]
    assert mutants
    for mutant in mutants:
        assert set(mutant.tests) <= proofs(promise), mutant.name


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_finds_its_place(mutant: Mutant) -> None:
    with mutated(mutant):
        pass
