"""What a user can mend: the errors and checks of losses.errors, which installs without utils."""

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
    "is_extreme",
    "shorten",
    "unknown",
]
