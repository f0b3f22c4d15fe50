"""What a user can mend: the errors and checks of losses.errors, which installs without utils."""

import signal

from losses.errors import (
    UserError,
    check_interval,
    is_extreme,
    shorten,
    unknown,
)

__all__ = [
    "UserError",
    "check_interval",
    "end_with_the_reader",
    "is_extreme",
    "shorten",
    "unknown",
]


def end_with_the_reader():
    """Let a command that only prints end without a message if e.g. ``head`` closes the pipe."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
