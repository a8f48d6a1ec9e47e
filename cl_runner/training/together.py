"""A run's steps in company: in turn with those of other runs, or as one step for all that are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cl_runner.company import MEMBER, Member
from cl_runner.training.stacked import Stack, batch_shape, memory, structure, why_not_stacked
from cl_runner.training.step import Step

ALONE = object()  # the answer to a run that has met nobody alike


def in_company(step: Step, tell: Callable[[str], None]) -> Step:
    """How the steps of this thread's run are made: as given where it is alone.

    Args:
        step: how they are made alone.
        tell: is told why steps are not computed together, once in a company.
    """
    member = MEMBER.get()
    return step if member is None else SharedStep(step, member, tell)


class SharedStep(Step):
    """Lets others have a step before each of one's own, or meets them for a common one.

    Attributes:
        alone: how a step is made that meets nobody alike.
        form: of the steps of this epoch; None where they are not to be computed with others.
        objects: that they work on.
    """

    def __init__(self, alone: Step, member: Member, tell: Callable[[str], None]) -> None:
        self.alone, self.form, self.objects = alone, None, ()  # type: Step, Any, tuple[Any, ...]
        self._member, self._tell = member, tell

    def begin_epoch(self, strategy: Any) -> None:
        """Finds out whether the steps of this epoch can be computed together with others."""
        self.alone.begin_epoch(strategy)
        self.form = None
        steps = self._member.company.steps
        if self._member.key is None or steps is None:
            return
        reason = why_not_stacked(strategy)
        if reason is None:
            self.form, self.objects = steps.number(self._member.key, structure(strategy)), memory(strategy)
        else:
            steps.tell(reason, self._tell)

    def learn(self, strategy: Any) -> bool:
        """Learns from the strategy's batch, when it is this run's turn."""
        if self.form is None:
            self._member.pass_on()
            return self.alone.learn(strategy)
        answer = self._member.meet(strategy)
        if answer is ALONE:
            return self.alone.learn(strategy)
        strategy.mb_output, strategy.loss = answer.output, answer.loss
        strategy.timer.mark("common step")
        if not strategy.guard.accepts(strategy):
            return False
        strategy.events.fire("after_update")
        strategy.timer.mark("hooks")
        return True


class CommonSteps:
    """Computes a step for all runs that have met, those that are alike together.

    Attributes:
        together: steps of single runs that were computed with others' so far.
    """

    def __init__(self) -> None:
        self.together = 0
        self._numbers: dict[Any, int] = {}
        self._stacks: dict[tuple[int, ...], tuple[Any, Stack]] = {}
        self._refused: set[Any] = set()
        self._told: set[str] = set()

    def number(self, *form: Any) -> int:
        """A short name of what is compared at every step."""
        return self._numbers.setdefault(form, len(self._numbers))

    def tell(self, reason: str, tell: Callable[[str], None]) -> None:
        """Says once why runs are computed one after another."""
        if reason not in self._told:
            self._told.add(reason)
            tell(f"steps are not computed together with those of other cells: {reason}")

    def __call__(self, members: list[Member]) -> None:
        """Gives each its answer."""
        groups: dict[Any, list[Member]] = {}
        for member in members:
            batch = batch_shape(member.request)
            form = (member.request.step.form, batch) if batch is not None else (None, id(member))
            groups.setdefault(form, []).append(member)
        for form, group in groups.items():
            if len(group) == 1 or form in self._refused:
                for member in group:
                    member.answer = ALONE
            else:
                self._compute(form, group)

    def _compute(self, form: Any, group: list[Member]) -> None:
        strategies = [member.request for member in group]
        try:
            stack = self._stack(group)
            losses = stack.losses()
        except Exception as error:  # vmap has no rule for an operation, or the memory does not hold all of them
            self._refused.add(form)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.tell(reason, strategies[0].step._tell)
            for member in group:
                member.answer = ALONE
            return
        try:
            answers: list[Any] = stack.update(losses)
        except Exception as error:  # some weights may have changed by now
            answers = [error] * len(group)
        for member, answer in zip(group, answers, strict=True):
            member.answer = answer
        self.together += len(group)

    def _stack(self, group: list[Member]) -> Stack:
        """The stacked networks of a group; made anew where a run works on other objects by now, or in another place."""
        key = tuple(id(member) for member in group)
        objects = [member.request.step.objects for member in group]
        known = self._stacks.get(key)
        if known is not None and known[0] == objects and known[1].current:
            return known[1]
        mine = {id(member) for member in group}
        self._stacks = {other: kept for other, kept in self._stacks.items() if not mine & set(other)}
        stack = Stack([member.request for member in group])
        self._stacks[key] = (objects, stack)
        return stack
