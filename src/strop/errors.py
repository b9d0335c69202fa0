"""The one exception users are meant to see: one line that says what, where and the mend."""


class StropError(Exception):
    """Bad input or a run that must stop. The message is one line; the CLI prints it and exits 1."""
