"""Shares of right answers: how much other questions would move them."""

from collections.abc import Sequence
from statistics import fmean

from pezoo.results import Result

ACCURACIES = ("exact_match", "token_accuracy")
"""Metrics from 0 to 1, shown in percent, of which more is better."""


def variance_of_share(share: float, n: int) -> float:
    """Return the variance of a share of n answers, with two right and two wrong ones added (Agresti and Coull 1998).

    So all right answers, or none, are not certain to be so of other questions.
    """
    p = (n * share + 2) / (n + 4)
    return p * (1 - p) / n


def questions_of(results: Sequence[Result]) -> int:
    """Return of how many questions a share would vary as the mean of several shares does.

    It is the number of all questions where the shares and their numbers are alike, and fewer where a share of few
    questions has its say in the mean.
    """
    if results[0].metric not in ACCURACIES:
        return sum(r.n_documents for r in results)
    variance = sum(variance_of_share(r.value, r.n_documents) for r in results) / len(results) ** 2
    p = fmean((r.n_documents * r.value + 2) / (r.n_documents + 4) for r in results)
    return min(round(p * (1 - p) / variance), sum(r.n_documents for r in results))
