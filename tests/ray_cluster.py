"""A real Ray cluster of two nodes on this machine, for tests and the benchmark: small, and without a dashboard."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

STORE_BYTES = 100 * 2**20
QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 10_000, "health_check_failure_threshold": 3,
         "health_check_initial_delay_ms": 500}  # fmt: skip
"""A dead node refuses connections at once and is noticed in two seconds; one that is only slow has half a minute."""


@contextmanager
def two_nodes(node_files: Path, cpus: int = 1) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of a head and one further node, `cpus` logical CPUs each; stopped at the end.

    node_files: the directory for temporary files of the nodes' processes. Ray's own are elsewhere: its sockets need a
    short path.
    """
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - optional

    head = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False, "_system_config": QUICK}
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short, "TMPDIR": str(node_files)}
        with patch.dict(os.environ, settings):
            cluster = Cluster(initialize_head=True, head_node_args=head)
            add_node(cluster, cpus)
        try:
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Any, cpus: int = 1) -> Any:
    """Start a further node."""
    return cluster.add_node(num_cpus=cpus, num_gpus=0, object_store_memory=STORE_BYTES)


def kill_node(cluster: Any, node: Any) -> None:
    """Kill all processes of a node, as a power cut would."""
    cluster.remove_node(node, allow_graceful=False)


def node_id(node: Any) -> str:
    """Ray's id of a node."""
    return str(node.node_id)


def bridges(sessions: Path) -> list[int]:
    """The process ids of the bridges below a directory of sessions."""
    return [int(path.read_text()) for path in sessions.glob("*/ray/*/pid")]
