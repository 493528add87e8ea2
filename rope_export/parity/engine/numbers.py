"""What is known of an engine beside its model: its structure, and whether a GPU ran its plan."""

from rope_export import gpu
from rope_export.engines import builder, module
from rope_export.engines.plan import PLAN, Engine, check_version
from rope_export.errors import UnavailableError
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row, counted


def structure(engine: Engine, seed: int) -> list[Row]:
    """Whether the model is parsed to the layers that the manifest says; nothing where the module is
    not here to parse it.

    Raises: InputError for a form that TensorRT computes otherwise; ArtifactError for a plan of
        another version.
    """
    facts = engine.facts
    try:
        here = module.load(facts.engine)
    except UnavailableError:
        return []
    check_version(engine.path, facts, here.version)
    found = builder.again(here, engine)
    differing = [
        name for name in found.keys() | facts.network if found.get(name) != facts.network.get(name)
    ]
    return [
        counted(
            case="structure of the network",
            seed=seed,
            runtime="file",
            output="layers",
            metric="differing facts",
            error=float(len(differing)),
        )
    ]


def numbers(engine: Engine, report: Report) -> str:
    """What is known of the numbers of this very plan; its evidence keeps what was compared now.

    Returns: "unverified", or "passed on" or "failed on" and the GPU.
    """
    plan = engine.facts.files[PLAN]["sha256"]
    rows = [row for row in report.rows if row.runtime == engine.facts.engine]
    if rows:
        failed = sum(row.status == "failed" for row in rows)
        worst = max(rows, key=lambda row: row.used)
        known = {
            "plan": plan,
            "gpu": str(gpu.here()),
            "version": engine.facts.version,
            "rows": len(rows),
            "failed": failed,
            "worst": worst.to_json(),
        }
        report.keep(engine.record(numbers=known))
    else:
        known = engine.evidence.get("numbers", {})
    if known.get("plan") != plan:
        return "unverified"
    return f"{'failed' if known['failed'] else 'passed'} on {known['gpu']}"
