"""The error whose message is written for users."""


class UserError(Exception):
    """Something the user can fix. The message is one line: the cause, then the fix. Stages print it and exit 1."""
