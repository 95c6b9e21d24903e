"""Exact decoding: asked for, found to hold on this machine, in force."""

from __future__ import annotations

import logging
from functools import cached_property

import torch
from transformers import PreTrainedModel

from foretoken.core.errors import ForetokenError, ModelError
from foretoken.engines.base import Exact, check_exact
from foretoken.engines.transformers.attention import is_causal_over_rows
from foretoken.engines.transformers.cost_key import cost_key
from foretoken.engines.transformers.inputs import input_device
from foretoken.engines.transformers.loading import reason
from foretoken.engines.transformers.quantized import rows_share_a_scale
from foretoken.engines.transformers.recurrent import is_recurrent
from foretoken.engines.transformers.row_attention import refuse_attention
from foretoken.engines.transformers.self_test import self_test
from foretoken.memory.self_tests import SelfTest, self_test_of

logger = logging.getLogger("foretoken")


class Exactness:
    """Whether drafted text is plain decoding's to the last bit of every logit, for a model as it runs now.

    Args:
        model: The model.
        asked: "auto" where the self-test passes and the cost is small, True to insist, False for neither.

    Raises:
        ForetokenError: If ``asked`` is none of these, or it is True and the model cannot be.
    """

    def __init__(self, model: PreTrainedModel, asked: Exact = "auto") -> None:
        self._model, self._asked = model, check_exact(asked)
        if asked is True:
            self.widths()

    def widths(self) -> tuple[int, ...]:
        """The numbers of rows that forwards may have, rising; none where exactness is not in force.

        The first use for a model runs its self-test, in about a second.

        Raises:
            ForetokenError: If exactness was asked for and cannot be.
        """
        if self._asked is False:
            return ()
        try:
            found = self.self_test
        except ForetokenError:
            if self._asked is True:
                raise
            return ()
        if self._asked is True and not found.passed:
            raise ModelError(
                f"exact=True cannot be kept here: with {self._name} the bits of a row depend on the rows beside it "
                f"({found.equal} of {found.rows} were equal), so leave exact out, or try another dtype."
            )
        return found.widths if self._asked is True or found.is_cheap else ()

    @property
    def self_test(self) -> SelfTest:
        """What the self-test of the model finds, with the threads of now.

        Raises:
            ForetokenError: If the model's attention cannot be computed row by row.
        """
        if self._refused is not None:
            raise self._refused
        if self._rounds_to_tf32:
            raise ModelError(
                f"exact=True cannot be kept with {self._name} while TF32 is on, which rounds what products read: set "
                'torch.backends.cuda.matmul.fp32_precision = "ieee", or leave exact out.'
            )
        return self_test_of(cost_key(self._model), self._run)

    @cached_property
    def _refused(self) -> ForetokenError | None:
        """Why the model cannot be exact, whatever the machine; None if it may."""
        try:
            refuse_attention(self._model)
        except ForetokenError as error:
            return error
        if is_recurrent(self._model):
            return ModelError(
                f"exact=True is for models of attention alone, and {self._name} keeps a recurrent state, which a scan "
                "of several rows rounds unlike single steps: leave it out."
            )
        if not is_causal_over_rows(self._model) or rows_share_a_scale(self._model):
            return ModelError(f"exact=True is for models that are drafted for, and {self._name} is not: leave it out.")
        return None

    @property
    def _rounds_to_tf32(self) -> bool:
        """Whether a GPU takes products of float32 for products of 10 bits, as the process may change at any time."""
        is_wide = self._model.dtype == torch.float32 and input_device(self._model).type == "cuda"
        return is_wide and torch.backends.cuda.matmul.fp32_precision == "tf32"

    @property
    def _name(self) -> str:
        return f"{type(self._model).__name__} in {str(self._model.dtype).removeprefix('torch.')}"

    def _run(self) -> SelfTest:
        try:
            return self_test(self._model)
        except ForetokenError as error:
            self._refused = ModelError(f"exact=True cannot be kept: {error} Leave exact out.")
        except Exception as error:  # of any kind: the model was given another attention than its own
            self._refused = ModelError(f"exact=True cannot be kept with {self._name}: {reason(error)} Leave exact out.")
        logger.debug("not exact: %s", self._refused)
        raise self._refused
