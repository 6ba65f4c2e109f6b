"""The error whose message is written for users."""


class UserError(Exception):
    """Something the user can fix. The message is one line, the cause and then the fix; stages print it and exit with 1."""
