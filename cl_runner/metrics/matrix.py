"""Continual-learning metrics, all computed from one accuracy matrix.

Notation: R[i, j] is the accuracy on task j after training on task i, both from 1 to T; R[0, j] is the
accuracy before any training. In the code, row ``i`` of ``matrix`` is R[i + 1, :] and ``initial`` is R[0, :].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

METRICS = ("acc", "learning_accuracy", "bwt", "fwt", "forgetting", "transfer", "average", "last")


def summarize(matrix: npt.ArrayLike, initial: npt.ArrayLike | None = None) -> dict[str, float | None]:
    """Computes every metric that the evaluated entries of the accuracy matrix allow.

    ==================  ==========================================================================
    acc, last           mean over j of R[T, j]
    learning_accuracy   mean over j of R[j, j]
    bwt                 mean over j < T of R[T, j] - R[j, j]          (Lopez-Paz and Ranzato, 2017)
    fwt                 mean over j > 1 of R[j-1, j] - R[0, j]        (Lopez-Paz and Ranzato, 2017)
    forgetting          mean over j < T of max(R[j, j] .. R[T-1, j]) - R[T, j] (Chaudhry et al., 2018)
    transfer            mean over j > 1 of the mean over 1 <= i < j of R[i, j]        (MTIL, X-TAIL)
    average             mean over all i >= 1 and j of R[i, j]                         (MTIL, X-TAIL)
    ==================  ==========================================================================

    Args:
        matrix: T x T accuracies in [0, 1], row i after training on task i; NaN where not evaluated.
        initial: T accuracies in [0, 1] before any training, which fwt needs; NaN where not evaluated.

    Returns:
        The metrics in the order of ``METRICS``. A metric is None where it is undefined: an entry it
        needs was not evaluated, or there is no term to average (T = 1 for bwt, fwt, forgetting, transfer).

    Raises:
        ValueError: the matrix is not square or empty, ``initial`` has another length, or a value is
            neither NaN nor in [0, 1].
    """
    r = _accuracies(matrix, "matrix")
    if r.ndim != 2 or r.shape[0] != r.shape[1] or r.size == 0:
        raise ValueError(f"matrix: must be T x T with T >= 1, has the shape {r.shape}")
    n_tasks = len(r)
    r0 = np.full(n_tasks, np.nan) if initial is None else _accuracies(initial, "initial")
    if r0.shape != (n_tasks,):
        raise ValueError(f"initial: must hold {n_tasks} accuracies, has the shape {r0.shape}")

    last, diagonal = r[-1], np.diagonal(r)
    earlier = range(n_tasks - 1)
    best = np.array([r[j:-1, j].max() for j in earlier])
    zero_shot = np.array([r[:j, j].mean() for j in range(1, n_tasks)])
    return {
        "acc": _mean(last),
        "learning_accuracy": _mean(diagonal),
        "bwt": _mean(last[:-1] - diagonal[:-1]),
        "fwt": _mean(np.diagonal(r, offset=1) - r0[1:]),
        "forgetting": _mean(best - last[:-1]),
        "transfer": _mean(zero_shot),
        "average": _mean(r),
        "last": _mean(last),
    }


def _accuracies(values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: must be an array of accuracies: {error}") from None
    wrong = array[~(np.isnan(array) | ((array >= 0.0) & (array <= 1.0)))]
    if wrong.size:
        raise ValueError(f"{name}: accuracies are in [0, 1] or NaN, found {wrong[0]} (divide percentages by 100)")
    return array


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Returns the mean, or None where there is nothing to average or an entry was not evaluated."""
    if values.size == 0 or np.isnan(values).any():
        return None
    return float(values.mean())
