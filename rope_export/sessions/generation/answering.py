"""From prompts to answers: what `rope-export generate` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rope_export.errors import InputError
from rope_export.sessions.generation.loop import Answer, Receive, Rows, Speed, decode
from rope_export.sessions.generation.prompts import check_prompts
from rope_export.sessions.generation.sampling import GREEDY, Sampling
from rope_export.sessions.generation.speculation import LONGEST as CANDIDATES
from rope_export.sessions.generation.speculation import check_lookup, decode_by_lookup

if TYPE_CHECKING:
    from rope_export.sessions.session import Session


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is generated, and how.

    max_tokens: of each answer. capacity: slots of a fixed cache; as many as prompt and answer need
    unless given. lookup: check tokens that follow the same words earlier in the text, several in
    one pass.
    Raises: InputError for values out of range.
    """

    max_tokens: int = 256
    sampling: Sampling = GREEDY
    capacity: int | None = None
    lookup: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"`max_tokens`={self.max_tokens}: it must be 1 or more.")
        if self.capacity is not None and self.capacity < 2:
            raise InputError(f"`capacity`={self.capacity}: it must be 2 or more.")


def answer_prompts(
    session: "Session",
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    plan: Plan,
    receive: Receive = lambda row, token: False,
) -> tuple[list[Answer], Speed]:
    """The answers to prompts of tokens, and how long they took.

    ends: tokens that end an answer. receive: is called with the row and every token of its answer
    as it comes, where True ends the row, and with nothing in place of a token when it has ended.
    Raises: InputError for a prompt that is empty or too long, or what the artifact cannot do.
    """
    if plan.lookup:
        check_lookup(session, plan.sampling)
    capacity = plan.capacity or session.capacity  # a stream refuses another than its only one
    check_prompts(session, prompts, capacity)
    if len(prompts) > 1 and not session.manifest.padding:
        return _one_by_one(session, prompts, ends, plan, receive)
    longest = max(map(len, prompts))
    limits = [x for x in (session.manifest.positions, capacity) if x is not None]
    room = min(limits, default=longest + plan.max_tokens) - longest
    slots = capacity or longest + min(plan.max_tokens, room) + CANDIDATES * plan.lookup
    rows = Rows(len(prompts), ends, longest=room, wanted=plan.max_tokens, receive=receive)
    if not plan.lookup:
        return rows.answers, decode(session, prompts, rows, plan.sampling, slots)
    speed = Speed()
    for at, prompt in enumerate(prompts):
        decode_by_lookup(session, prompt, rows, at, slots, speed)
    return rows.answers, speed


def _one_by_one(
    session: "Session",
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    plan: Plan,
    receive: Receive,
) -> tuple[list[Answer], Speed]:
    """The answers to prompts that cannot be rows of one batch, since that asks for padding."""
    answers, speed = [], Speed()
    for row, prompt in enumerate(prompts):

        def taken(_: int, token: int | None, row: int = row) -> bool:
            return receive(row, token)

        (answer,), own = answer_prompts(session, [prompt], ends, plan, taken)
        answers.append(answer)
        speed.add(own)
    return answers, speed
