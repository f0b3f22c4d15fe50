"""What a user can mend, told apart from what is a bug of ours."""


class UserError(ValueError):
    """A mistake in what was asked for or given: raised deliberately, shown as one line.

    Every command catches this class alone, and ends with exit code 2. Any other exception is a bug,
    and keeps its traceback. The message says what was got, what is allowed and what to do.
    """
