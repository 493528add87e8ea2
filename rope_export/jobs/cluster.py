"""Calls on a Ray cluster: each asks for what it needs, answers come as they are there, and what a
machine loses when it goes is made again on another."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rope_export.errors import UnavailableError, extra
from rope_export.jobs.call import Answer, Call, Needs, answered, keep
from rope_export.jobs.store import Store

RETRIES = 3
"""How often a call is made again that was lost with its process or its machine."""

CONNECT = 10.0
"""Seconds in which a cluster answers."""

AHEAD = 2
"""Calls that are handed to the cluster for each of its processors, so that none waits."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs. address: as Ray takes it, such as "10.0.0.1:6379" or "auto".

    Its workers need this package, of the same code, and what the calls need.
    """

    address: str

    def answers(self, calls: Sequence[Call], store: Store) -> Iterator[Answer]:
        """Raises: UnavailableError where Ray is missing, or there is no cluster at the address."""
        if not calls:
            return
        with extra("ray", "running on a Ray cluster"):
            import ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._reach()
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise UnavailableError(
                f"`ray`={self.address}: no Ray cluster answers there ({line}). Start one with "
                f"`ray start --head`, and give the address that it prints."
            ) from error
        try:
            yield from _streamed(ray, calls, store)
        finally:
            ray.shutdown()

    def _reach(self) -> None:
        """Raises: OSError where nothing answers at a host and port, for which Ray waits minutes."""
        host, colon, port = self.address.rpartition(":")
        if colon and port.isdigit() and "://" not in self.address:
            socket.create_connection((host, int(port)), timeout=CONNECT).close()


def _streamed(ray: Any, calls: Sequence[Call], store: Store) -> Iterator[Answer]:
    """Answers as they come; no more calls are handed out than the cluster can begin soon."""
    remote = ray.remote(answered)
    waiting = list(reversed(calls))
    running: dict[Any, Call] = {}
    while waiting or running:
        ahead = max(1, int(AHEAD * ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < ahead:
            call = waiting.pop()
            options = _options(call.needs, ray.nodes())
            running[remote.options(**options).remote(call, None)] = call
        ready, _ = ray.wait(list(running), num_returns=1)
        for reference in ready:
            call = running.pop(reference)
            try:
                answer: Answer = ray.get(reference)
            except ray.exceptions.RayError as error:
                line = next(iter(str(error).strip().splitlines()), type(error).__name__)
                answer = Answer(name=call.name, values={}, error=f"Ray: {line}")
            keep(call, answer.values, store)
            yield answer


def _options(needs: Needs, nodes: Sequence[Any]) -> dict[str, Any]:
    """What Ray is asked for. A GPU only where a machine has one: elsewhere the call tells by itself
    that there is none; and no more memory than the largest machine has."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = max((node.get("GPU", 0.0) for node in alive), default=0.0)
    memory = max((node.get("memory", 0.0) for node in alive), default=0.0)
    return {
        "num_cpus": needs.cpus,
        "num_gpus": min(needs.gpus, gpus),
        "memory": int(min(needs.memory, memory)),
        "max_retries": RETRIES,
    }
