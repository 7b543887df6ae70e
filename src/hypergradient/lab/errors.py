"""Errors that the user can fix, and how they are printed."""

import sys

from pydantic import ValidationError


class LabError(Exception):
    """An error that the user can fix: one line with the wrong value, what is allowed, and how to fix it."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, shortened, to be quoted in another message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def shortened(source: str) -> str:
    """A value cut to 100 characters, for use in a message."""
    return source if len(source) <= 100 else f"{source[:100]}..."


def report_error(message: str) -> int:
    """Print one line to stderr and return exit status 2."""
    words = (word if len(word) <= 200 else f"{word[:100]}..." for word in message.split())
    line = "".join(character if character.isprintable() else "?" for character in " ".join(words))
    print(f"hypergradient: {line}", file=sys.stderr)
    return 2


def validation_message(error: ValidationError, name: str = "") -> str:
    """The first of pydantic's errors as one line: the option, what is allowed, and the value given."""
    first = error.errors(include_url=False)[0]
    option = "".join(f"--{str(place).replace('_', '-')}" for place in first["loc"][:1]) or name
    return f"{option}: {first['msg'][0].lower()}{first['msg'][1:]}, got {str(first['input'])[:100]!r}"
