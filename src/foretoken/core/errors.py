"""Errors that the user can mend."""


class ForetokenError(ValueError):
    """A bad input or an unfit model. The message is one sentence that says what is wrong and what to do."""


class RequestError(ForetokenError):
    """An argument that cannot be honoured. Another request may be: a server answers 400."""


class ModelError(ForetokenError):
    """A model, a tokenizer or an engine that is missing, damaged or unfit. No other request helps: a server's 500."""


class LogitsError(ModelError):
    """A model answered with what is no number, so that no token can be chosen."""

    def __init__(self) -> None:
        super().__init__(
            "The logits are not numbers: the weights of the model or of its draft model are damaged, or too large for "
            "the dtype or the temperature. Try dtype float32, or download them again."
        )
