"""Calls in processes of this machine, which live on from one call to the next."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rope_export.errors import extra
from rope_export.jobs.call import Answer, Call, answered
from rope_export.jobs.store import Store

DIED = "the process that ran it died: it was killed, was out of memory, or crashed in native code"


@dataclass(frozen=True)
class Processes:
    """As many processes as `jobs` says, of one thread each: threads that wait for one another take
    longer. With 1, calls are made in this process.

    A process that dies takes the others with it, so the calls that were in flight are made again,
    each in a process of its own: which of them it was has an error, and no other is lost.
    """

    jobs: int

    def answers(self, calls: Sequence[Call], store: Store) -> Iterator[Answer]:
        """Raises: UnavailableError where joblib is missing."""
        if not calls:
            return
        with extra("sweep", "running in several processes"):
            import joblib  # noqa: F401
        remaining = {call.name: call for call in calls}
        while remaining:
            in_flight: dict[str, Call] = {}
            try:
                for answer in self._answers(remaining, in_flight, store):
                    del remaining[answer.name], in_flight[answer.name]
                    yield answer
            except _died():
                for name, call in in_flight.items():
                    del remaining[name]
                    yield _alone(call, store)

    def _answers(
        self, calls: dict[str, Call], in_flight: dict[str, Call], store: Store
    ) -> Iterator[Answer]:
        """in_flight: gets each call when a process may have begun it."""
        import joblib

        def handed_out() -> Iterator[object]:
            for name, call in list(calls.items()):
                in_flight[name] = call
                yield joblib.delayed(answered)(call, store)

        processes = min(self.jobs, max(2, len(calls)))
        with (
            warnings.catch_warnings(action="ignore"),  # a process that grew too large is replaced
            joblib.parallel_config("loky", inner_max_num_threads=1),
        ):
            parallel = joblib.Parallel(processes, batch_size=1, return_as="generator_unordered")
            yield from parallel(handed_out())


def _alone(call: Call, store: Store) -> Answer:
    """A call in a process of its own, however that ends."""
    from joblib.externals.loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1, env={"OMP_NUM_THREADS": "1"}) as process:
        try:
            answer: Answer = process.submit(answered, call, store).result()
        except _died():
            answer = Answer(name=call.name, values={}, error=DIED)
    return answer


def _died() -> type[Exception]:
    """What joblib raises once one of its processes has died."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    died: type[Exception] = BrokenProcessPool
    return died
