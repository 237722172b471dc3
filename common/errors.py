"""The one exception that scripts show as a single line."""


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line: what was expected, what came."""
