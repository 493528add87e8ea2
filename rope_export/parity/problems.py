"""What goes wrong in one case after the other for one reason, in one line."""


class Problems:
    """Failures by runtime and reason, with the cases that met them."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, str], list[str]] = {}
        self._first: dict[tuple[str, str], str] = {}

    def add(self, runtime: str, case: str, reason: str, message: str) -> None:
        """reason: what is the same wherever this is met. message: of this case."""
        self._cases.setdefault((runtime, reason), []).append(case)
        self._first.setdefault((runtime, reason), message)

    def lines(self) -> list[str]:
        """A line for each runtime and reason: the first case that met it, and how many others."""
        return [
            f"{cases[0]}{_others(len(cases) - 1)} on {runtime}: {self._first[runtime, reason]}"
            for (runtime, reason), cases in self._cases.items()
        ]


def _others(count: int) -> str:
    if not count:
        return ""
    return f" and {count} more case{'s' if count > 1 else ''}"
