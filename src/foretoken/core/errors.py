"""The one error that is the user's to mend."""


class ForetokenError(ValueError):
    """A bad input or an unfit model. The message is one sentence that says what is wrong and what to do."""
