"""The errors that are the user's to mend."""


class ForetokenError(ValueError):
    """A bad input or an unfit model. The message is one sentence that says what is wrong and what to do."""


class LogitsError(ForetokenError):
    """A model answered with what is no number, so that no token can be chosen."""

    def __init__(self) -> None:
        super().__init__(
            "The logits are not numbers: the weights of the model or of its draft model are damaged, or too large for "
            "the dtype or the temperature. Try dtype float32, or download them again."
        )
