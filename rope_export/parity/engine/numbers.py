"""Rows on an engine's structure, and whether a GPU has computed with its plan."""

from rope_export import gpu
from rope_export.engines import builder, module
from rope_export.engines.network import NetworkFacts
from rope_export.engines.plan import PLAN, Engine, check_version
from rope_export.errors import UnavailableError
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row, counted


def structure_rows(engine: Engine, seed: int) -> list[Row]:
    """Whether the model is parsed to the layers that the manifest names; no row where the module is
    not installed that parses it.

    Raises: InputError for a form that TensorRT computes otherwise; ArtifactError for a plan of
        another version.
    """
    facts = engine.facts
    try:
        parser = module.load(facts.engine)
    except UnavailableError:
        return []
    check_version(engine.path, facts, parser.version)
    parsed = builder.again(parser, engine)
    differing = [
        name
        for name in NetworkFacts.__struct_fields__
        if getattr(parsed, name) != getattr(facts.network, name)
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


def compared_numbers(engine: Engine, report: Report) -> str:
    """Whether the numbers of this very plan were compared; its evidence keeps the new rows.

    Returns: "unverified", or "passed on" or "failed on" and the GPU.
    """
    plan = engine.facts.files[PLAN].sha256
    rows = [row for row in report.rows if row.runtime == engine.facts.engine]
    if rows:
        failed = sum(row.status == "failed" for row in rows)
        worst = max(rows, key=lambda row: row.used)
        evidence = {
            "plan": plan,
            "gpu": str(gpu.here()),
            "version": engine.facts.version,
            "rows": len(rows),
            "failed": failed,
            "worst": worst.to_json(),
        }
        report.keep(engine.record(numbers=evidence))
    else:
        evidence = engine.evidence.get("numbers", {})
    if evidence.get("plan") != plan:
        return "unverified"
    return f"{'failed' if evidence['failed'] else 'passed'} on {evidence['gpu']}"
