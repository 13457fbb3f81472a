"""The errors a user can meet. A combination we refuse, alike on every rank, is an UnsupportedError."""


class UnsupportedError(ValueError):
    """A combination dit-usp does not support: the text says what, the numbers, and the nearest choice that works."""
