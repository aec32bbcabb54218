"""The one exception for a user's mistake: a single line with the value, the limit and the next step."""


class UserError(ValueError):
    """Something the user can mend. The launchers print its one line and exit with status 2; all else is our bug."""
