"""Runs many calls in processes of this machine or on a cluster, and goes on where a killed run
stopped."""

from rope_export.jobs.call import Answer, Call, Needs
from rope_export.jobs.running import Finished, Pool, run
from rope_export.jobs.store import Store, code_digest, digest, files_digest, finished

__all__ = [
    "Answer",
    "Call",
    "Finished",
    "Needs",
    "Pool",
    "Store",
    "code_digest",
    "digest",
    "files_digest",
    "finished",
    "run",
]
