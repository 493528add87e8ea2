"""A Ray cluster of three machines with a processor each, which are processes on this one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Machines:
    """address: as `--ray` takes it."""

    def __init__(self, inner: Any, workers: list[Any]) -> None:
        self._inner, self._workers = inner, {worker.node_id: worker for worker in workers}
        self.address: str = inner.address

    def kill(self, node: str) -> None:
        """Kill a machine with all that it computes. node: its id."""
        self._inner.remove_node(self._workers.pop(node), allow_graceful=False)

    def kill_one(self) -> None:
        self.kill(next(iter(self._workers)))


@contextmanager
def machines() -> Iterator[Machines]:
    """Started, without telemetry and dashboard, and ended afterwards."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(ROOT))
    head = {"num_cpus": 0, "include_dashboard": False}
    inner = Cluster(initialize_head=True, head_node_args=head)
    try:
        workers = [inner.add_node(num_cpus=1) for _ in range(3)]
        yield Machines(inner, workers)
    finally:
        inner.shutdown()
        os.environ.clear()
        os.environ.update(before)
