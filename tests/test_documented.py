"""docs/operations.md names what the code says: log events, reasons, metrics, and settings by their full names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.replicas import ROOT

from allim.domains.builtin import BUILT_IN
from allim.domains.choice import known
from allim.domains.settings import variables
from allim.http.refused import REASONS
from allim.settings import Settings, load_settings
from allim.telemetry import Metrics
from allim.variables import PREFIX

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
OF_DOMAINS = {
    variable.name.removeprefix(PREFIX): info.default
    for domain in known(BUILT_IN)
    if domain.settings is not None
    for variable, info in zip(
        variables(domain.name, domain.settings), domain.settings.model_fields.values(), strict=True
    )
}
SETTINGS = {name.upper() for name in Settings.model_fields} | set(OF_DOMAINS)
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def section(title: str) -> str:
    """What stands under a heading of docs/operations.md, as far as the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", OPERATIONS, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def names(title: str) -> set[str]:
    """The code words in the first column of a section's tables."""
    rows = [row.split(" | ")[0] for row in section(title).splitlines() if row.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


# -- Log events ------------------------------------------------------------------------------------------------


def logged(module: ast.Module) -> Iterator[str]:
    """The events that a module logs: `log.info("…")`, or by a name that stands for such a function."""
    functions = {
        target.id
        for node in ast.walk(module)
        if isinstance(node, ast.Assign) and any(map(is_log_function, ast.walk(node.value)))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(module):
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if is_log_function(call.func) or (isinstance(call.func, ast.Name) and call.func.id in functions):
            yield from texts(call.args[0], module)


def is_log_function(node: ast.AST) -> bool:
    """`log.info`, `self.logger.info`."""
    if not isinstance(node, ast.Attribute) or node.attr not in LEVELS:
        return False
    owner = node.value
    return (isinstance(owner, ast.Name) and owner.id == "log") or (
        isinstance(owner, ast.Attribute) and owner.attr == "logger"
    )


def texts(event: ast.expr, module: ast.Module) -> list[str]:
    """The texts that an event may have: its own, or those assigned to its name."""
    values: list[ast.expr] = [event]
    if isinstance(event, ast.Name):
        assigned = [node for node in ast.walk(module) if isinstance(node, ast.Assign)]
        values = [
            node.value for node in assigned if ast.dump(node.targets[0]) == ast.dump(ast.Name(event.id, ast.Store()))
        ]
    found = [part.value for value in values for part in ast.walk(value) if isinstance(part, ast.Constant)]
    events = [text for text in found if isinstance(text, str)]
    assert events, f"an event that is no text: {ast.unparse(event)}"
    return events


def test_every_log_event_has_its_row_and_every_row_its_event() -> None:
    modules = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]

    assert names("Logs") == {event for module in modules for event in logged(module)}


# -- Reasons, metrics, settings --------------------------------------------------------------------------------


def test_every_reason_to_refuse_credentials_has_its_row() -> None:
    assert names("Refused credentials") == set(REASONS)


def test_every_metric_has_its_row() -> None:
    metrics = Metrics()
    metrics.redis_memory(1, 2)
    found = set(re.findall(r"^# TYPE (allim_\w+) ", metrics.text().decode(), re.MULTILINE))
    ours = {name for name in found if not name.endswith("_created")}

    assert {name.partition("{")[0] for name in names("Metrics")} == ours


def test_every_setting_has_its_row_under_its_full_name() -> None:
    told = names("Settings") | names("Identity") | names("Limits")

    assert {name for name in told if name.startswith(PREFIX)} >= {PREFIX + name for name in SETTINGS}


def test_a_default_is_what_the_row_says(tmp_path: Path) -> None:
    settings = load_settings({"ALLIM_DATA_DIR": str(tmp_path)})

    for name, told in re.findall(r"^\| `ALLIM_(\w+)` \| ([\d,.]+)[ |:(]", OPERATIONS, re.MULTILINE):
        default = OF_DOMAINS[name] if name in OF_DOMAINS else getattr(settings, name.lower())
        assert float(told.replace(",", "")) == float(default), name


@pytest.mark.parametrize(
    "path",
    [
        path.relative_to(ROOT).as_posix()
        for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "web" / "README.md"])
    ],
)
def test_pages_name_settings_in_full(path: str) -> None:
    """A `SECRET_KEY` that is copied from a page would be ignored."""
    bare = re.compile(rf"(?<![A-Za-z0-9_…])({'|'.join(sorted(SETTINGS))})(?![A-Za-z0-9_])")

    assert bare.findall((ROOT / path).read_text()) == []


def test_what_the_code_says_names_settings_in_full() -> None:
    """Errors, log lines and help. `naming` and `read_secret` add the prefix themselves."""
    bare = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(sorted(SETTINGS))})(?![A-Za-z0-9_])")
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        module = ast.parse(path.read_text())
        named = {id(arg) for node in ast.walk(module) if is_naming(node) for arg in ast.walk(node)}
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in named:
                found += [
                    (path.name, node.lineno, name)
                    for name in bare.findall(node.value)
                    if not is_after_prefix(module, node)
                ]

    assert found == []


def is_naming(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"naming", "read_secret"}
    )


def is_after_prefix(module: ast.Module, text: ast.Constant) -> bool:
    """Whether `{PREFIX}` stands before a part of an f-string."""
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr) and text in node.values:
            at = node.values.index(text)
            return at > 0 and ast.unparse(node.values[at - 1]).strip("f'\"{}") == "PREFIX"
    return False
