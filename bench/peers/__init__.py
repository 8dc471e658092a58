"""The systems allim is measured against, each as its documentation suggests, at the setting that serves it best.

None of them signs anybody in, and none tells a stream what it missed: both favour them.
"""

from bench.peers.litestar import LITESTAR
from bench.peers.naive import NAIVE
from bench.peers.nchan import IN_MEMORY, IN_REDIS, PLAIN
from bench.peers.nest import NEST, NEST_FASTIFY
from bench.peers.pushpin import PUSHPIN

PEERS = (NAIVE, LITESTAR, NEST, NEST_FASTIFY, PLAIN, IN_MEMORY, IN_REDIS, PUSHPIN)
