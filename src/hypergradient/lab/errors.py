"""What the user can mend."""

import sys

from pydantic import ValidationError


class LabError(Exception):
    """Something the user can mend: one line that names the value, what is allowed, and the mend."""


def first_line(error: BaseException) -> str:
    """An exception in one short line, for messages that quote it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def shortened(source: str) -> str:
    """What was given, as far as a message has room for it."""
    return source if len(source) <= 100 else f"{source[:100]}..."


def complain(message: str) -> int:
    """One line on stderr; returns the exit status of an error that the user can mend."""
    words = (word if len(word) <= 200 else f"{word[:100]}..." for word in message.split())
    line = "".join(character if character.isprintable() else "?" for character in " ".join(words))
    print(f"hypergradient: {line}", file=sys.stderr)
    return 2


def told(error: ValidationError, name: str = "") -> str:
    """What pydantic refuses, as a line: the first of its errors, with the option, what is allowed, and what was given."""
    first = error.errors(include_url=False)[0]
    option = "".join(f"--{str(place).replace('_', '-')}" for place in first["loc"][:1]) or name
    return f"{option}: {first['msg'][0].lower()}{first['msg'][1:]}, got {str(first['input'])[:100]!r}"
