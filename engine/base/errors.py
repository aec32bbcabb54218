"""The exception for a user's mistake: one line with the value, the limit and the next step."""


class UserError(ValueError):
    """A mistake the user can fix. Launchers print its line and exit with status 2; other exceptions are our bugs."""
