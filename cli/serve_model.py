"""`virtualmle serve-model`: answer recommendation requests over HTTP from an exported model."""

import os
from functools import partial
from typing import Annotated

import typer

from .options import AllowedHosts
from .serving_options import ExportDirectory, ServingDevice, ServingThreads
from .token_options import Token, TokenFile, bearer_token

OPEN_PATHS = ("/health",)  # for load balancers, which have no token
MAX_CONNECTIONS = 1024
KEEP_ALIVE_SECONDS = 60  # proxies keep their connections for about as long


def serve_model(  # noqa: PLR0913, PLR0917 - one parameter per option
    directory: ExportDirectory,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 = any free port.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs a token.")] = "127.0.0.1",
    token_file: TokenFile = None,
    token: Token = None,
    allowed_host: AllowedHosts = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Users that are scored together.")] = 64,
    window: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that an incomplete batch waits for further requests.")
    ] = 0.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Users in the queue; further requests get 503 with Retry-After.")
    ] = 1024,
    device: ServingDevice = "auto",
    threads: ServingThreads = 0,
) -> None:
    """Serve an exported model over HTTP: POST /recommend and /similar, GET /health and /metrics.

    A new export in DIR (or SIGHUP) is loaded beside the old one and replaces it without a lost request. SIGTERM
    finishes the requests in progress.

    Example: virtualmle serve-model model --port 8080

    Ask it: curl -d '{"history": ["item-7", "item-9"], "k": 5}' http://127.0.0.1:8080/recommend
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported: spinning threads starve others
    from ..server.bearer import check_token  # these import the MCP library and torch
    from ..server.connections import HttpLimits, limited
    from ..server.guard import Guard
    from ..server.log import start_log
    from ..server.names import allowed_names
    from ..server.streamable_http import listen
    from ..serving.batching import BatchLimits
    from ..serving.endpoint import serve_endpoint
    from ..serving.recommender import use_threads

    start_log("%(levelname)s %(message)s")
    secret = bearer_token(token, token_file)
    hosts = allowed_host or []
    check_token(host, secret, hosts)
    guard = partial(Guard, names=allowed_names(host, hosts), token=secret, open_paths=OPEN_PATHS)
    use_threads(threads)
    with listen(host, port) as listener:
        limits = BatchLimits(max_batch, window / 1000, max_waiting)
        protocol = limited(HttpLimits(keep_alive_seconds=KEEP_ALIVE_SECONDS, max_connections=MAX_CONNECTIONS))
        serve_endpoint(directory, device, listener, guard, protocol, limits)
