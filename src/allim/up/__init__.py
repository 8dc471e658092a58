"""`allim up --replicas N`: Redis, N replicas and nginx on one port, on this machine, without Docker.

There are three generations of processes. The one that the user started (`run`) starts supervisord in a session of
its own, so that Ctrl-C reaches only `run`; supervisord starts, restarts and stops the rest in order. It stops the
replicas first, all at once, because their last frame of each stream (`stream.close`) travels through nginx; then
nginx; then Redis.

All files are in one private folder that is removed at the end. Secrets travel in the environment only, never in a
file or on a command line.
"""

from allim.up.layout import StartError, find_program, private_folder
from allim.up.nginx import nginx_command, write_nginx
from allim.up.run import run

__all__ = ["StartError", "find_program", "nginx_command", "private_folder", "run", "write_nginx"]
