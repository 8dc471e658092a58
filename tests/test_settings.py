import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from allim.selection import select
from allim.settings import SettingsError, load_or_create_secret, load_settings, unknown_settings, warnings

SECRET = "s3cret-" * 6


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ALLIM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def test_nothing_given_is_one_process_with_a_key_of_its_own(data_dir: str) -> None:
    settings = load_settings({"ALLIM_DATA_DIR": data_dir})

    assert not settings.clustered
    assert (settings.heartbeat_s, settings.history_events, settings.publish_keys) == (15, 256, ())
    assert settings.database_url == f"sqlite:///{data_dir}/allim.db"
    assert settings.secret_key == (Path(data_dir) / "secret_key").read_text()


def test_everything_given_is_taken() -> None:
    settings = load_settings(
        {
            "ALLIM_REDIS_URL": "rediss://u:p@redis.example:6380/1",
            "ALLIM_REDIS_DURABLE": "true",
            "ALLIM_DATABASE_URL": "postgresql://db/allim",
            "ALLIM_SECRET_KEY": SECRET,
            "ALLIM_SERVER_ID": "replica-1",
            "ALLIM_PUBLISH_KEYS": " orders:a-secret-of-20-chars , another-secret-of-20,,",
            "ALLIM_TRUSTED_PROXIES": "10.0.0.0/8,::1",
            "ALLIM_HEARTBEAT_S": "2.5",
            "ALLIM_RETRY_MS": "100",
            "ALLIM_LOG_FORMAT": "text",
        }
    )

    assert settings.clustered
    assert settings.redis_durable is True
    assert settings.database_url == "postgresql://db/allim"
    assert settings.server_id == "replica-1"
    assert settings.publish_keys == ("orders:a-secret-of-20-chars", "another-secret-of-20")
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")
    assert (settings.heartbeat_s, settings.retry_ms, settings.log_format) == (2.5, 100, "text")


@pytest.mark.parametrize(
    ("given", "trusted"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("::1", "::1"),
        ("fd00::1/8", "fd00::/8"),
        ("::/0", "::/0"),
    ],
)
def test_a_trusted_network_has_the_form_it_is_compared_in(given: str, trusted: str) -> None:
    settings = load_settings({"ALLIM_SECRET_KEY": SECRET, "ALLIM_TRUSTED_PROXIES": given})

    assert settings.trusted_proxies == (trusted,)


def test_an_empty_value_is_as_good_as_none(data_dir: str) -> None:
    settings = load_settings({"ALLIM_DATA_DIR": data_dir, "ALLIM_REDIS_URL": "", "ALLIM_HEARTBEAT_S": ""})

    assert (settings.redis_url, settings.heartbeat_s) == (None, 15)


def test_settings_cannot_be_changed() -> None:
    settings = load_settings({"ALLIM_SECRET_KEY": SECRET})

    with pytest.raises(ValidationError):
        settings.heartbeat_s = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "http://redis"),
        ("REDIS_PREFIX", "a{b}"),
        ("REDIS_PREFIX", "a b"),
        ("REDIS_PREFIX", "ü"),
        ("REDIS_PREFIX", "a\n"),
        ("REDIS_PREFIX", "p" * 65),
        ("REDIS_DURABLE", "perhaps"),
        ("SECRET_KEY", "short"),
        ("SECRET_KEY", "x" * 31),
        ("SERVER_ID", "a b"),
        ("SERVER_ID", "a/b"),
        ("SERVER_ID", "ü"),
        ("SERVER_ID", "s" * 65),
        ("TRUSTED_PROXIES", "proxy.example"),
        ("TRUSTED_PROXIES", "10.0.0.1,300.1.1.1"),
        ("CORS_HEADERS", "*"),
        ("CORS_HEADERS", "x-a b"),
        ("CORS_HEADERS", "x-a:"),
        ("HEARTBEAT_S", "0.5"),
        ("HEARTBEAT_S", "301"),
        ("HEARTBEAT_S", "soon"),
        ("HEARTBEAT_S", "nan"),
        ("PULSE_S", "0.1"),
        ("PULSE_S", "inf"),
        ("HISTORY_EVENTS", "0"),
        ("HISTORY_EVENTS", "1.5"),
        ("HISTORY_EVENTS", "100001"),
        ("HISTORY_TTL_S", "0"),
        ("MAX_EVENT_BYTES", "63"),
        ("MAX_EVENT_BYTES", "1048577"),
        ("STREAM_BUFFER_BYTES", "4095"),
        ("STREAM_LIFETIME_S", "0"),
        ("DRAIN_S", "-1"),
        ("RETRY_MS", "0"),
        ("SESSION_LIFETIME_S", "0"),
        ("SNAPSHOT_STEP_MS", "-1"),
        ("COOKIE_NAME", "a b"),
        ("COOKIE_NAME", "a=b"),
        ("COOKIE_NAME", "c" * 65),
        ("ACCOUNTS_REGISTRATION", "maybe"),
        ("AUTHORIZE_URL", "app.example"),
        ("PUBLISH_KEYS", "short"),
        ("PUBLISH_KEYS", "shop:nineteen-characters"),
        ("PUBLISH_KEYS", "shop:a-secret-of-20-chars,short"),
        ("OLD_SECRET_KEYS", "short"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        select(load_settings({"ALLIM_SECRET_KEY": SECRET, f"ALLIM_{name}": value}))

    line = str(caught.value)
    assert line.startswith(f"ALLIM_{name}: ")
    assert "\n" not in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.org",
        "http://tauri.localhost",
        "https://*.example.org",
        "https://*.pages.example.org:8443",
        "http://*.localhost.example.org",
        "https://*.acme.github.io",
        "capacitor://localhost",
        "tauri://localhost",
        "ionic://localhost",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "moz-extension://0f9a1c52-7c5e-4a2b-9d3e-1b2c3d4e5f60",
    ],
)
def test_origins_of_pages_apps_and_extensions_are_taken(origin: str) -> None:
    assert load_settings({"ALLIM_SECRET_KEY": SECRET, "ALLIM_CORS_ORIGINS": origin}).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "https://*",
        "https://*.com",
        "https://*.co.uk",
        "https://*.github.io",
        "https://*.localhost",
        "https://*.0.0.1",
        "https://a*.example.org",
        "https://*.*.example.org",
        "https://a.*.example.org",
        "https://*.example.org/",
        "https://*.example.org:443",
        "https://*.example.org:*",
        "https://*.Example.org",
        "*.example.org",
        "*://a.example.org",
        "capacitor://*",
        "capacitor://*.example.org",
        "ftp://example.org",
        "file://",
        "chrome-extension://*",
        "chrome-extension://abc",
        "moz-extension://*",
        "https://app.example.org/",
        "https://app.example.org:443",
    ],
)
def test_an_origin_that_is_none_or_belongs_to_many_is_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"^ALLIM_CORS_ORIGINS: "):
        load_settings({"ALLIM_SECRET_KEY": SECRET, "ALLIM_CORS_ORIGINS": origin})


@pytest.mark.parametrize(
    ("name", "secret"),
    [("SECRET_KEY", "hunter2-short"), ("REDIS_URL", "redis//:hunter2@host"), ("DRAIN_S", "hunter2")],
)
def test_a_wrong_value_is_not_repeated(name: str, secret: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({f"ALLIM_{name}": secret})

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_wrong_value_is_named_in_one_go() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"ALLIM_HEARTBEAT_S": "x", "ALLIM_LOG_LEVEL": "x", "ALLIM_RETRY_MS": "x"})

    for name in ("ALLIM_HEARTBEAT_S", "ALLIM_LOG_LEVEL", "ALLIM_RETRY_MS"):
        assert name in str(caught.value)


def test_replicas_over_redis_need_the_same_key(data_dir: str) -> None:
    with pytest.raises(SettingsError, match="ALLIM_SECRET_KEY: required when ALLIM_REDIS_URL is set"):
        load_settings({"ALLIM_REDIS_URL": "redis://localhost", "ALLIM_DATA_DIR": data_dir})

    assert not Path(data_dir).exists()


def test_each_process_has_a_name_of_its_own() -> None:
    names = {load_settings({"ALLIM_SECRET_KEY": SECRET}).server_id for _ in range(3)}

    assert len(names) == 3


def test_unknown_variables_are_named() -> None:
    environ = {"ALLIM_HEARBEAT_S": "1", "ALLIM_HEARTBEAT_S": "1", "OTHER": "1", "ALLIM_": "", "allim_x": "1"}

    assert unknown_settings(environ) == ["ALLIM_", "ALLIM_HEARBEAT_S"]


def test_what_kubernetes_sets_for_a_service_is_not_taken_for_a_slip() -> None:
    environ = {
        "ALLIM_SERVICE_HOST": "10.0.0.1",
        "ALLIM_SERVICE_PORT": "80",
        "ALLIM_SERVICE_PORT_HTTP": "80",
        "ALLIM_PORT": "tcp://10.0.0.1:80",
        "ALLIM_PORT_80_TCP": "tcp://10.0.0.1:80",
        "ALLIM_PORT_80_TCP_ADDR": "10.0.0.1",
    }

    assert warnings(environ) == []


def test_a_setting_without_its_prefix_is_told_where_the_setting_is_not_there() -> None:
    environ = {"REDIS_URL": "redis://x", "DATABASE_URL": "x", "ALLIM_DATABASE_URL": "sqlite:///x", "PORT": "1"}

    assert warnings(environ) == ["REDIS_URL is set and ALLIM_REDIS_URL is not: only ALLIM_REDIS_URL is a setting"]


@pytest.mark.parametrize("name", ["ALLIM_JWT_ISSUER", "ALLIM_JWT_AUDIENCE"])
def test_a_setting_that_is_to_go_is_told_with_what_takes_its_place(name: str) -> None:
    assert warnings({name: "x"}) == [f"{name} works until 1.0: describe the issuer in ALLIM_ISSUERS instead"]


def test_the_webhook_needs_an_address_and_a_secret_that_cannot_be_guessed() -> None:
    url, secret = {"ALLIM_AUTHORIZE_URL": "http://app.test/allim"}, "s" * 32
    for given in (url, {"ALLIM_AUTHORIZE_SECRET": secret}):
        with pytest.raises(SettingsError, match="ALLIM_AUTHORIZE_URL, ALLIM_AUTHORIZE_SECRET: give both, or neither"):
            load_settings({"ALLIM_SECRET_KEY": SECRET, **given})
    with pytest.raises(SettingsError, match="ALLIM_AUTHORIZE_SECRET: must have at least 32 characters") as caught:
        load_settings({"ALLIM_SECRET_KEY": SECRET, **url, "ALLIM_AUTHORIZE_SECRET": "s" * 31})

    assert "s" * 31 not in str(caught.value)
    assert load_settings({"ALLIM_SECRET_KEY": SECRET, **url, "ALLIM_AUTHORIZE_SECRET": secret}).authorize_url


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HEARTBEAT_S", "soon", "must be a number from 1 to 300"),
        ("HISTORY_EVENTS", "0", "must be a whole number from 1 to 100,000"),
        ("DURABILITY", "maybe", "must be memory, replica or disk"),
        ("REDIS_DURABLE", "perhaps", "must be true or false"),
        ("JWT_AUDIENCE", "x" * 257, "must have 1 to 256 characters"),
        ("LOG_LEVEL", "loud", "must be debug, info, warning or error"),
        (
            *("PUBLISH_KEYS", "a:sha256:0,shop:short"),
            "entry 2 has a secret of fewer than 20 characters; `allim key NAME` makes one that cannot be guessed",
        ),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"ALLIM_SECRET_KEY": SECRET, f"ALLIM_{name}": value})

    assert str(caught.value) == f"ALLIM_{name}: {said}"


# -- the key of the data folder --------------------------------------------------------------------------------


def test_the_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    first = load_or_create_secret(tmp_path)

    assert load_or_create_secret(tmp_path) == first
    assert len(first) >= 64
    assert stat.S_IMODE((tmp_path / "secret_key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


def test_threads_that_race_get_one_key(tmp_path: Path) -> None:
    barrier, got = threading.Barrier(16), []

    def race() -> None:
        barrier.wait()
        got.append(load_or_create_secret(tmp_path / "data"))

    threads = [threading.Thread(target=race) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(got) == 16
    assert len(set(got)) == 1


def test_processes_that_race_get_one_key(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from allim.settings import load_or_create_secret as load; sys.stdin.read();"
        "print(load(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]

    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    keys = {racer.communicate(timeout=60)[0] for racer in racers}

    assert len(keys) == 1
    assert len(keys.pop()) > 64


def test_a_folder_that_cannot_be_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingsError, match="ALLIM_DATA_DIR: ") as caught:
        load_settings({"ALLIM_DATA_DIR": str(tmp_path / "file")})

    assert "\n" not in str(caught.value)


def test_a_key_is_read_from_a_file_also_with_redis(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    environ = {"ALLIM_REDIS_URL": "redis://localhost", "ALLIM_SECRET_KEY_FILE": str(tmp_path / "key")}

    assert load_settings(environ).secret_key == SECRET
    assert load_settings({**environ, "ALLIM_SECRET_KEY": SECRET[::-1]}).secret_key == SECRET[::-1]


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"short", "32 char"), (b"\xff" * 40, "text")]
)
def test_a_key_file_that_holds_no_key_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)

    with pytest.raises(SettingsError, match=f"^ALLIM_SECRET_KEY_FILE: .*{reason}"):
        load_settings({"ALLIM_SECRET_KEY_FILE": str(tmp_path / "key")})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(SettingsError, match="ALLIM_DATA_DIR: Permission denied"):
        load_or_create_secret(tmp_path)


@pytest.mark.parametrize("provider", ["GOOGLE", "KAKAO", "NAVER"])
def test_a_provider_needs_the_public_address(provider: str) -> None:
    environ = {
        "ALLIM_SECRET_KEY": SECRET,
        f"ALLIM_{provider}_CLIENT_ID": "id",
        f"ALLIM_{provider}_CLIENT_SECRET": "hunter2",
    }
    with pytest.raises(SettingsError, match=f"^ALLIM_PUBLIC_URL: required with ALLIM_{provider}_CLIENT_ID"):
        select(load_settings(environ))

    assert select(load_settings({**environ, "ALLIM_PUBLIC_URL": "https://app.example.org"})).stored
