"""The one error that services raise for something the user can act on."""


class ServiceError(RuntimeError):
    """A service could not be had. The message says what was found, what was expected, what to do."""
