"""docker-compose.yml: what can be seen without Docker. Redis' command line is run in brokers/test_redis_access.py,
and all of it on an engine in tests/engine."""

import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from harness.compose import PATH, networks, services
from harness.replicas import ROOT

from allim.domains.builtin import BUILT_IN
from allim.domains.choice import known
from allim.domains.settings import variables
from allim.settings import Settings, load_settings, unknown_settings
from allim.variables import PREFIX

NOT_PASSED_ON = {"data_dir", "drain_s", "log_format", "redis_durable", "server_id", "snapshots_step_ms"}


OF_DOMAINS = {
    variable.name.removeprefix(PREFIX).lower()
    for domain in known(BUILT_IN)
    for variable in variables(domain.name, domain.settings)
}
PASSED_ON = {*Settings.model_fields, *OF_DOMAINS} - NOT_PASSED_ON


@pytest.fixture
def app() -> dict[str, Any]:
    service: dict[str, Any] = services({})["app"]
    return service


def test_with_nothing_set_the_settings_are_right(app: dict[str, Any]) -> None:
    environ = {**app["environment"], f"{PREFIX}SECRET_KEY": "k" * 32}

    settings = load_settings(environ)

    assert settings.redis_url == "redis://allim:allim@redis:6379/0"
    assert unknown_settings(environ) == []


def test_every_setting_is_passed_on_or_left_out_on_purpose(app: dict[str, Any]) -> None:
    passed_on = {name.removeprefix(PREFIX).lower() for name in app["environment"]}

    assert passed_on == PASSED_ON


def test_each_takes_the_variable_of_its_own_name() -> None:
    own = {"ALLIM_REDIS_URL", "ALLIM_DATABASE_URL", "ALLIM_TRUSTED_PROXIES", "ALLIM_SECRET_KEY_FILE"}  # Compose's
    names = re.findall(r"^      (ALLIM_\w+): \$\{(\w+):?-", PATH.read_text(), re.MULTILINE)

    assert {variable for name, variable in names if name == variable} == {
        f"{PREFIX}{name.upper()}" for name in PASSED_ON
    } - own
    others = {name for name, variable in names if name != variable}
    assert others == {"ALLIM_NGINX_ORIGINS", "ALLIM_TRUSTED_PROXIES"}


def test_passwords_and_origins_go_to_both_who_need_them() -> None:
    environ = {"REDIS_PASSWORD": "r3dis", "POSTGRES_PASSWORD": "pg", "ALLIM_CORS_ORIGINS": "https://a.example"}
    parts = services(environ)

    assert "allim:r3dis@redis" in parts["app"]["environment"]["ALLIM_REDIS_URL"]
    assert parts["redis"]["environment"]["REDISCLI_AUTH"] == "r3dis"
    assert "allim:pg@postgres" in parts["app"]["environment"]["ALLIM_DATABASE_URL"]
    assert parts["postgres"]["environment"]["POSTGRES_PASSWORD"] == "pg"
    assert parts["nginx"]["environment"]["ALLIM_NGINX_ORIGINS"] == "https://a.example"
    assert parts["app"]["environment"]["ALLIM_CORS_ORIGINS"] == "https://a.example"


@pytest.mark.parametrize("name", ["nginx", "tls", "app", "secret", "redis", "postgres"])
def test_every_service_has_the_least_privilege(name: str) -> None:
    service = services({})[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] == 256


def test_only_nginx_is_reached_from_outside_and_only_replicas_reach_what_is_stored() -> None:
    parts = services({})

    assert [name for name, part in parts.items() if "ports" in part] == ["nginx", "tls"]
    assert parts["nginx"]["ports"] == ["127.0.0.1:8000:8000"]
    assert parts["tls"]["profiles"] == ["tls"]
    assert {name for name, part in parts.items() if "back" in part.get("networks", [])} == {
        "app",
        "redis",
        "postgres",
    }


def test_no_secret_stands_on_a_command_line() -> None:
    parts = services({"REDIS_PASSWORD": "hush", "POSTGRES_PASSWORD": "hush", "ALLIM_SECRET_KEY": "hush"})

    assert "hush" not in str([(part.get("command"), part.get("healthcheck")) for part in parts.values()])


def test_each_image_is_built_by_one_service() -> None:
    built = [part["image"] for part in services({}).values() if "build" in part]
    pulled = [part["image"] for part in services({}).values() if part.get("pull_policy") != "never"]

    assert sorted(built) == ["allim", "allim-nginx"]
    assert sorted({*pulled} - {*built}) == ["postgres:17-alpine", "redis:7-alpine"]


def test_the_log_options_fit_the_driver_that_is_named() -> None:
    for part in services({}).values():
        assert part["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


@pytest.mark.parametrize("environ", [{}, {"NETWORK": "10.9.8"}])
def test_only_the_network_of_nginx_is_believed(environ: dict[str, str]) -> None:
    app, found = services(environ)["app"], networks(environ)
    subnets = {
        name: ip_network(part["ipam"]["config"][0]["subnet"]) for name, part in found.items() if "ipam" in part
    }

    assert [*subnets] == ["edge", "front"]
    assert ip_network(app["environment"]["ALLIM_TRUSTED_PROXIES"]) == subnets["front"]
    assert not subnets["front"].overlaps(subnets["edge"])
    assert ip_address(found["edge"]["ipam"]["config"][0]["gateway"]) in subnets["edge"]


@pytest.mark.parametrize("name", ["nginx", "tls"])
def test_nginx_ends_at_once_and_after_the_replicas(name: str) -> None:
    parts = services({})

    assert parts[name]["stop_signal"] == "SIGTERM"
    assert parts["app"]["depends_on"]["nginx"] == {"condition": "service_started"}


@pytest.mark.parametrize(("environ", "replicas"), [({}, 3), ({"REPLICAS": "5"}, 5)])
def test_the_number_of_replicas_is_a_variable(environ: dict[str, str], replicas: int) -> None:
    assert services(environ)["app"]["scale"] == replicas


def test_every_variable_of_the_shell_is_in_the_docs() -> None:
    names = set(re.findall(r"\$\{(\w+):-", PATH.read_text()))
    docs = (ROOT / "docs/operations.md").read_text()

    assert [name for name in names if not name.startswith(PREFIX) and f"`{name}`" not in docs] == []


def test_the_image_of_nginx_fills_in_every_variable_of_the_template() -> None:
    template = (ROOT / "nginx/nginx.conf.template").read_text()
    dockerfile = (ROOT / "Dockerfile").read_text()

    used = set(re.findall(r"\$\{(ALLIM_NGINX_\w+)\}", template))
    assert used == set(re.findall(r"^\s+(ALLIM_NGINX_\w+)=", dockerfile, re.MULTILINE))


def test_what_the_images_copy_is_sent_to_the_engine() -> None:
    """`.dockerignore` leaves everything out and names what it lets in."""
    let_in = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    copied = {source.split("/")[0] for sources in copies for source in sources.split()}
    assert copied == let_in
