"""Runs Redis, replicas and nginx on one port of this machine, without Docker."""

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import click

from allim import data_folder
from allim.alone import alone
from allim.settings import SettingsError, load_settings
from allim.up.layout import StartError, find_program, make_layout, private_folder, proxies_in_front, replica_environ
from allim.up.nginx import check_nginx
from allim.up.running import Stop, run_supervised
from allim.up.supervision import write_files


def run(replicas: int, host: str, port: int, environ: Mapping[str, str]) -> int:
    """Run until a signal, and return the exit code.

    SIGINT, SIGTERM and SIGHUP drain and stop everything and return 0; a second SIGINT ends everything at once. 1: it
    could not start, or supervisord was killed. Call it on the main thread.
    """
    from allim.preflight import check  # supervisord imports this module too and does not need it

    try:
        redis_url = environ.get("ALLIM_REDIS_URL")
        redis = None if redis_url else find_program("redis-server", environ)
        nginx = find_program("nginx", environ)
        layout = make_layout(replicas, host, port, redis_url, Path(environ.get("ALLIM_DATA_DIR") or "data"))
        shared = replica_environ(layout, environ)
        settings = load_settings(shared)  # a wrong value is reported here, once, instead of by every replica
        if settings.durability != "memory" and redis is not None:
            raise StartError(
                f"ALLIM_DURABILITY is {settings.durability}, and the Redis started here keeps nothing",
                "name a Redis of your own in ALLIM_REDIS_URL, or unset ALLIM_DURABILITY",
            )
        if open_folder := data_folder.tighten(settings.data_dir):
            click.echo(f"allim up: {open_folder}", err=True)
        asyncio.run(check(settings, redis=redis is None))
        drain_s = settings.drain_s
        # Two systems with a Redis each would share a database but no events.
        own = nullcontext() if redis is None else alone(settings.data_dir)
        with own, Stop(drain_s) as stop, private_folder() as folder:
            front = {"origins": settings.cors_origins, "trusted": proxies_in_front(environ, shared)}
            write_files(folder, layout, drain_s, redis=redis, nginx=nginx, **front)
            check_nginx(nginx, folder / "nginx")
            return run_supervised(folder, layout, shared, stop)
    except (StartError, SettingsError) as why:
        click.echo(f"allim up: {why}", err=True)
        if why.advice:
            click.echo(f"     → {why.advice}", err=True)
        return 1
