"""What evaluations found, as the recorder is told it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from cl_runner.recording.console import Console
from cl_runner.recording.losses import Figures
from cl_runner.recording.measured import Measured
from cl_runner.recording.run_folder import RunFolder


class EvaluationRecords:
    """The part of a recorder that is told of evaluations; "after task 0" is before any training."""

    folder: RunFolder
    _console: Console
    _found: Measured
    log: Callable[..., None]

    def evaluated(
        self,
        after_task: int,
        accuracies: Sequence[float | None],
        figures: Sequence[Figures | None] | None = None,
        *,
        carried: Collection[int] = (),
    ) -> None:
        """Records the accuracies in [0, 1] on all T tasks after ``after_task``; NaN or None where not evaluated.

        Of texts they are the scores, and ``figures`` what is known of each task besides: loss, perplexity, ...
        ``carried`` are the tasks, from 1, of which nothing was measured anew: their answers cannot have changed.
        """
        row = self._found.put_row(after_task, accuracies)
        measured = self._found.losses.add(after_task, row, figures)
        for task, accuracy in enumerate(row, start=1):
            if accuracy == accuracy or task in measured:  # not NaN
                more = measured.get(task, {}) | ({"carried": True} if task in carried else {})
                self.log("evaluated", after_task=after_task, task=task, accuracy=accuracy, **more)
        self.folder.write_matrix(self._found.initial.tolist(), self._found.matrix.tolist(), self._found.tasks)
        if measured:
            self.folder.write_losses(self._found.losses.rows())
        self._console.evaluation(after_task, row, self._found.losses.row(after_task) if measured else None)

    def probed(self, after_task: int, accuracies: Mapping[str, float | None]) -> None:
        """Records the accuracies in [0, 1] by probe domain after ``after_task``; NaN or None where not evaluated.

        From those before any training and after the last task comes the summary's ``retention``.
        """
        for domain, accuracy in self._found.probes.add(after_task, accuracies).items():
            self.log("probed", after_task=after_task, domain=domain, accuracy=accuracy)
        if self._found.probes.domains:
            self.folder.write_probes(self._found.probes.rows(), self._found.probes.domains)
            before = self._found.probes.mean(0) if after_task else None
            self._console.probes(self._found.probes.mean(after_task), before)

    def classes_evaluated(
        self, after_task: int, by_task: Mapping[int, Mapping[int, float]], names: Mapping[int, str]
    ) -> None:
        """Records accuracies in [0, 1] by task (from 0) and class id; ``names`` holds the names of the classes."""
        for task, accuracies in sorted(by_task.items()):
            shown = {"class_ids": list(accuracies), "accuracies": list(accuracies.values())}
            self.log("classes_evaluated", after_task=after_task, task=task + 1, **shown)
            self._found.add_classes(after_task, task + 1, accuracies, names)
        if by_task:
            self.folder.write_classes(self._found.classes)

    def tasks_inferred(self, after_task: int, shares: Sequence[float | None]) -> None:
        """Records the shares in [0, 1] of each task's samples whose task was recognised without a label.

        Their mean over all tasks after the last one is the summary's ``task_inference_accuracy``.
        """
        for task, share in enumerate(shares, start=1):
            if share is not None and share == share:  # not NaN
                self.log("task_inferred", after_task=after_task, task=task, accuracy=share)
        self._found.add_inferred(after_task, shares)

    def evaluated_at_rank(
        self,
        rank: int,
        accuracies: Sequence[float | None],
        *,
        after_task: int | None = None,
        losses: Sequence[float | None] | None = None,
    ) -> None:
        """Records accuracies in [0, 1] and losses (nats a token) on all T tasks, the network truncated to ``rank``.

        NaN or None where not evaluated. It was trained on ``after_task`` tasks; None: on all.
        """
        when = {} if after_task is None else {"after_task": after_task}
        for task, accuracy in enumerate(accuracies, start=1):
            loss = {} if losses is None else {"loss": losses[task - 1]}
            row = {"rank": rank, **when, "task": task, "accuracy": accuracy, **loss}
            self.log("evaluated_at_rank", **row)
            self._found.ranks.append({"after_task": len(self._found.tasks), **row})
        self.folder.write_rank_curve(self._found.ranks)
