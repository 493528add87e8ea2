"""Whether what an engine's plan computes was compared on a GPU, now or before."""

from rope_export.engines import gpu
from rope_export.engines.plan import PLAN, Engine
from rope_export.parity.rows import Report


def numbers(engine: Engine, report: Report) -> str:
    """What is known of the numbers of this very plan; its evidence keeps what was compared now.

    Returns: "unverified", or "passed on" or "failed on" and the GPU.
    """
    plan = engine.facts.files[PLAN]["sha256"]
    rows = [row for row in report.rows if row.runtime == engine.facts.engine]
    if rows:
        failed = sum(row.status == "failed" for row in rows)
        worst = max(rows, key=lambda row: row.used)
        engine.record(
            numbers={
                "plan": plan,
                "gpu": str(gpu.here()),
                "version": engine.facts.version,
                "rows": len(rows),
                "failed": failed,
                "worst": worst.to_json(),
            }
        )
    known = engine.evidence.get("numbers", {})
    if known.get("plan") != plan:
        return "unverified"
    return f"{'failed' if known['failed'] else 'passed'} on {known['gpu']}"
