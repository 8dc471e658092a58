"""docker-compose.yml: what can be seen without Docker. Redis' command line is run in brokers/test_redis_access.py."""

import re
from typing import Any

import pytest

from allim.settings import PREFIX, Settings, load_settings, unknown_settings
from tests.compose import PATH, services

NOT_PASSED_ON = {"data_dir", "drain_s", "log_format", "redis_durable", "server_id", "snapshot_step_ms"}


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

    assert passed_on == set(Settings.model_fields) - NOT_PASSED_ON


def test_each_takes_the_variable_of_its_own_name() -> None:
    own = {"ALLIM_REDIS_URL", "ALLIM_DATABASE_URL", "ALLIM_TRUSTED_PROXIES"}  # Compose's, and nobody else's
    of_nginx = {"ALLIM_NGINX_TRUSTED"}
    names = re.findall(r"^      (ALLIM_\w+): \$\{(\w+):-", PATH.read_text(), re.MULTILINE)

    assert {variable for name, variable in names if name == variable} - of_nginx == {
        f"{PREFIX}{name.upper()}" for name in set(Settings.model_fields) - NOT_PASSED_ON
    } - own
    assert {name for name, variable in names if name != variable} == {"ALLIM_NGINX_ORIGINS"}


def test_passwords_and_origins_go_to_both_who_need_them() -> None:
    environ = {"REDIS_PASSWORD": "r3dis", "POSTGRES_PASSWORD": "pg", "ALLIM_CORS_ORIGINS": "https://a.example"}
    parts = services(environ)

    assert "allim:r3dis@redis" in parts["app"]["environment"]["ALLIM_REDIS_URL"]
    assert parts["redis"]["environment"]["REDISCLI_AUTH"] == "r3dis"
    assert "allim:pg@postgres" in parts["app"]["environment"]["ALLIM_DATABASE_URL"]
    assert parts["postgres"]["environment"]["POSTGRES_PASSWORD"] == "pg"
    assert parts["nginx"]["environment"]["ALLIM_NGINX_ORIGINS"] == "https://a.example"
    assert parts["app"]["environment"]["ALLIM_CORS_ORIGINS"] == "https://a.example"


@pytest.mark.parametrize("name", ["nginx", "app", "secret", "redis", "postgres"])
def test_every_service_has_the_least_privilege(name: str) -> None:
    service = services({})[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] == 256


def test_only_nginx_is_reached_from_outside_and_only_replicas_reach_what_is_stored() -> None:
    parts = services({})

    assert [name for name, part in parts.items() if "ports" in part] == ["nginx"]
    assert parts["nginx"]["ports"] == ["127.0.0.1:8000:8000"]
    assert {name for name, part in parts.items() if "back" in part.get("networks", [])} == {
        "app",
        "redis",
        "postgres",
    }


def test_no_secret_stands_on_a_command_line() -> None:
    parts = services({"REDIS_PASSWORD": "hush", "POSTGRES_PASSWORD": "hush", "ALLIM_SECRET_KEY": "hush"})

    assert "hush" not in str([(part.get("command"), part.get("healthcheck")) for part in parts.values()])
