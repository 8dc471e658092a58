"""The plain install, its extras, and the tested versions of the libraries that allim bends."""

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from harness.replicas import ROOT

from allim import requirements
from allim.domains.builtin import BUILT_IN, EXTRAS
from allim.errors import Unusable
from tests.blocking import run_without

PROJECT: Any = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OF_EXTRAS = sorted({module for modules in requirements.EXTRAS.values() for module in modules})
DISTRIBUTIONS = {"argon2": "argon2-cffi"}  # where the name is another than the module's
SERVE = "import sys; sys.argv = ['allim', *{arguments!r}]; from allim.cli import main; main()"


def named(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0]


# The plain install -----------------------------------------------------------------------------------------------


def test_the_extras_of_the_package_are_those_that_a_start_names() -> None:
    extras = PROJECT["optional-dependencies"]
    for extra, modules in requirements.EXTRAS.items():
        own = [named(each) for each in extras[extra] if not each.startswith("allim[")]
        assert sorted(own) == sorted(DISTRIBUTIONS.get(module, module) for module in modules), extra
    assert set(EXTRAS.values()) <= set(extras)
    assert set(EXTRAS) <= set(BUILT_IN)


def test_all_contains_every_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    reached: set[str] = set()
    waiting = ["all"]
    while waiting:
        for each in extras[waiting.pop()]:
            if inner := re.fullmatch(r"allim\[(.*)\]", each):
                waiting += inner[1].split(",")
                reached |= set(inner[1].split(","))

    assert reached == set(extras) - {"all", "dev"}


def test_the_plain_install_has_no_module_of_an_extra() -> None:
    plain = {named(each) for each in PROJECT["dependencies"]}

    assert not plain & {DISTRIBUTIONS.get(module, module) for module in OF_EXTRAS}


def test_the_hub_is_ready_on_the_plain_install_and_loads_no_more() -> None:
    """Also over Redis, which is not asked before the lifespan."""
    program = (
        "import asyncio, sys; from allim.app import create_app; from allim.server import replica\n"
        "async def main():\n"
        "    app = create_app()\n"
        "    async with app.router.lifespan_context(app): print(len(app.routes) > 5)\n"
        "asyncio.run(main())\n"
        "print(sorted(name for name in ('alembic', 'httpx', 'redis', 'rich') if name in sys.modules))"
    )

    done = run_without([*OF_EXTRAS, "rich"], program, {"ALLIM_DOMAINS": "", "ALLIM_LOG_LEVEL": "error"})

    assert done.stdout.splitlines()[-2:] == ["True", "[]"], done.stderr


def test_the_hub_over_redis_needs_no_extra() -> None:
    program = "import sys; from allim.app import create_app; create_app(); print('redis' in sys.modules)"
    environ = {"ALLIM_DOMAINS": "", "ALLIM_REDIS_URL": "redis://127.0.0.1:1"}

    done = run_without(OF_EXTRAS, program, environ)

    assert done.stdout.endswith("True\n"), done.stderr


def test_accounts_on_sqlite_load_neither_providers_nor_migrations_once_the_schema_is_the_newest(
    tmp_path: Path,
) -> None:
    program = (
        "import asyncio, sys; from allim.app import create_app\n"
        "async def main():\n"
        "    app = create_app()\n"
        "    async with app.router.lifespan_context(app): pass\n"
        "asyncio.run(main())\n"
        "loaded = ('alembic', 'asyncpg', 'authlib', 'httpx', 'mako', 'redis', 'sqlalchemy')\n"
        "print(sorted(name for name in loaded if name in sys.modules))"
    )
    environ = {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_LOG_LEVEL": "error"}

    first = run_without([], program, environ)
    second = run_without(["alembic"], program, environ)

    assert first.stdout.splitlines()[-1] == "['alembic', 'mako', 'sqlalchemy']", first.stderr
    assert second.stdout.splitlines()[-1] == "['sqlalchemy']", second.stderr


def test_the_client_needs_httpx_alone_at_import() -> None:
    others = {named(each).lower() for each in PROJECT["dependencies"]} - {"httpx", "anyio"}  # httpx needs anyio
    modules = {each.replace("-", "_") for each in others} | {"pydantic_core", *OF_EXTRAS}

    done = run_without(modules, "import allim.client; print('imported')")

    assert done.stdout == "imported\n", done.stderr


# A missing extra -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocked", "environ", "arguments", "lines"),
    [
        (
            OF_EXTRAS,
            {},
            ["serve"],
            ["ALLIM_DOMAINS: the domain accounts needs argon2, which is not installed", "accounts"],
        ),
        (
            ["sqlalchemy"],
            {},
            ["serve"],
            ["ALLIM_DOMAINS: the domain accounts needs sqlalchemy, which is not installed", "accounts"],
        ),
        (
            ["alembic", "sqlalchemy"],
            {"ALLIM_DOMAINS": "keys"},
            ["serve"],
            ["ALLIM_DOMAINS: the domain keys needs sqlalchemy, which is not installed", "storage"],
        ),
        (
            ["asyncpg"],
            {"ALLIM_DATABASE_URL": "postgresql://127.0.0.1:1/none", "ALLIM_DOMAINS": "keys"},
            ["serve"],
            ["ALLIM_DATABASE_URL: PostgreSQL needs asyncpg, which is not installed", "postgres"],
        ),
        (
            ["supervisor"],
            {"ALLIM_DOMAINS": ""},
            ["up", "--replicas", "2"],
            ["--replicas 2 needs supervisor, which is not installed", "up"],
        ),
        (["sqlalchemy"], {}, ["work", "dead"], ["allim work needs sqlalchemy, which is not installed", "storage"]),
    ],
    ids=["default", "database", "keys", "postgres", "up", "work"],
)
def test_a_missing_extra_stops_the_start_with_the_command_that_installs_it(
    blocked: list[str], environ: dict[str, str], arguments: list[str], lines: list[str], tmp_path: Path
) -> None:
    environ = {"ALLIM_DATA_DIR": str(tmp_path), **environ}
    port = ["--port", "0"] if "serve" in arguments else []

    done = run_without(blocked, SERVE.format(arguments=[*arguments, *port]), environ)

    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert said == [f"allim: {lines[0]}", f"     → pip install 'allim[{lines[1]}]'"]
    assert done.returncode == 2


def test_another_missing_module_of_a_domain_is_told_as_it_is() -> None:
    done = run_without(["anyio"], "from allim.domains.choice import chosen; chosen(['accounts'])")

    assert "ModuleNotFoundError: No module named 'anyio'" in done.stderr.splitlines()[-1]


# Versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", requirements.TESTED)
def test_the_tested_versions_are_those_of_the_package(library: str) -> None:
    (declared,) = [each for each in PROJECT["dependencies"] if named(each) == library]
    first, end = requirements.TESTED[library]

    assert re.sub(r"\[.*\]", "", declared) == f"{library}>={first},<{end}"
    requirements.check_version(library)


@pytest.mark.parametrize(
    ("version", "taken"),
    [
        *[("0.53.9", False), ("0.54.0", True), ("0.54.12", True), ("0.55.0", False), ("0.55.0b1", False)],
        *[("1.54.0", False), ("0.6", False), ("0.100.0", False)],
    ],
)
def test_other_versions_are_refused(version: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "TESTED", {"uvicorn": ("0.54", "0.55")})
    monkeypatch.setattr(requirements, "version", lambda _: version)

    if taken:
        requirements.check_version("uvicorn")
    else:
        with pytest.raises(Unusable, match=f"{version} is installed; allim is tested with uvicorn>=0.54,<0.55"):
            requirements.check_version("uvicorn")


@pytest.mark.parametrize(
    ("library", "environ", "arguments", "subject"),
    [
        ("uvicorn", {"ALLIM_DOMAINS": ""}, ["serve", "--port", "0"], ""),
        (
            "redis",
            {"ALLIM_DOMAINS": "", "ALLIM_REDIS_URL": "redis://127.0.0.1:1"},
            ["serve", "--port", "0"],
            "ALLIM_REDIS_URL: ",
        ),
        ("redis", {"ALLIM_DOMAINS": ""}, ["doctor"], ""),
    ],
)
def test_a_start_with_another_version_is_refused_in_one_line_before_its_import(
    library: str, environ: dict[str, str], arguments: list[str], subject: str
) -> None:
    """The library itself cannot be imported here."""
    program = (
        "from importlib import metadata; real = metadata.version\n"
        f"metadata.version = lambda name: '9.9.0' if name == {library!r} else real(name)\n"
    )

    done = run_without([library], program + SERVE.format(arguments=arguments), environ)

    first, end = requirements.TESTED[library]
    wanted = f"{library}>={first},<{end}"
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert said == [
        f"allim: {subject}{library} 9.9.0 is installed; allim is tested with {wanted}",
        f"     → pip install '{wanted}'",
    ]
    assert done.returncode == 2


def test_the_lock_file_has_tested_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)

    assert {name: locked[name] for name in requirements.TESTED} == {
        name: metadata.version(name) for name in requirements.TESTED
    }
