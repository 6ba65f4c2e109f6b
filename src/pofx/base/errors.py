"""The one error that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The message is one line: the cause, then the mend; stages print it and exit 1."""
