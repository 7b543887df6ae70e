"""What the user can mend."""


class LabError(Exception):
    """Something the user can mend: one line that names the value, what is allowed, and the mend."""


def first_line(error: BaseException) -> str:
    """An exception in one short line, for messages that quote it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
