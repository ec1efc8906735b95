"""The end of a tuning run: choices are verified in the whole model, or given up."""

from __future__ import annotations

from compiler.errors import UserError
from compiler.records.records import ModelLine
from compiler.tuning.in_model import PAIRS, TURN_SECONDS, Choices, ModelComparison
from compiler.tuning.session import Session

COMPARISON_SECONDS = 2 * PAIRS * (2 * TURN_SECONDS + 1.2)
"""Of one comparison, with the start of its processes and without compiling."""
_MOST_COMPARISONS = 3  # what takes the place of a choice that was given up is compared as well


def conclude(
    session: Session, comparison: ModelComparison | None, known: ModelLine | None, deadline: float
) -> tuple[float, float] | None:
    """Record what is chosen for the model: the choices that win in it, if the whole run does as well; else none.

    An earlier tuning's choices stay where these neither win nor lose by more than chance.

    Args:
        comparison: None where the model cannot be run; then times taken alone decide.
        known: what an earlier tuning of the model recorded.
        deadline: by `time.monotonic()`, to be as quick as can be after it.

    Returns:
        Seconds of a run, untuned and tuned; None when nothing was chosen, or not compared.
    """
    if comparison is None:
        session.conclude(Choices(session.states).chosen, None)
        return None
    compared = None
    for _ in range(_MOST_COMPARISONS):
        choices = Choices(session.states)
        if not choices:
            break
        session.announce("compare in the model")
        try:
            compared = comparison.measure(choices, deadline)
        except UserError as error:
            session.problems.append(f"nothing is chosen: {error.message}")
            session.keep_defaults()
            return None
        if not session.settle_in_model(compared):
            if compared.is_faster:
                session.conclude(choices.chosen, compared)
                return compared.untuned.latency, compared.tuned.latency
            break
    session.keep_defaults()
    if compared is not None and known is not None and known.choices and not compared.is_slower:
        session.problems.append("earlier choices for the model are kept: the new ones are not significantly faster")
        return None
    if compared is not None:
        session.problems.append(
            f"the model is not significantly faster as a whole ({compared.gain:.3f} times, give or take "
            f"{compared.spread:.1%}): it stays as it is untuned"
        )
    session.conclude([], None)
    return None
