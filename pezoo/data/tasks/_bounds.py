"""The lengths that a task has."""

from pezoo.errors import UserError


def check_length(task: str, length: int, least: int, most: int | None = None, remedy: str = "") -> None:
    """Refuse a length at which a task has no questions.

    Args:
        task: name of the task.
        length: what was asked for.
        least: the shortest there is.
        most: the longest there is; None: any.
        remedy: what makes the longest longer.

    Raises:
        UserError: if the length lies outside.
    """
    if length < least:
        what = f"{task} has no questions of length {length}; its shortest have length {least}"
        raise UserError(f"{what}: choose longer ones, in training by train.min_length={least}")
    if most is not None and length > most:
        raise UserError(f"{task} has no questions of length {length}; its longest have length {most}: {remedy}")
