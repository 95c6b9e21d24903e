"""What each row of a draft tree may attend to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foretoken.core.draft import Draft


def tree_mask(
    draft: Draft, num_cached: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The additive attention mask and the positions of a forward over the last token and a draft.

    A row sees the cache, itself and its ancestors; with a sliding window, those less than ``window`` positions back.
    Additive rather than boolean, because eager attention adds whatever it is given.

    Returns:
        Mask [1, 1, rows, num_cached + rows], 0 where seen and the dtype's minimum elsewhere; positions [1, rows].
    """
    rows = 1 + len(draft)
    related = np.eye(rows, dtype=bool)
    for node, parent in enumerate(draft.parents):
        related[node + 1] |= related[parent + 1]
    with torch.device("cpu"):  # whatever the default device is
        seen = torch.cat([torch.ones(rows, num_cached, dtype=torch.bool), torch.from_numpy(related)], dim=1)
        positions = torch.tensor([0, *draft.depths]) + num_cached
        if window is not None:
            seen &= positions[:, None] - torch.cat([torch.arange(num_cached), positions])[None] < window
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[None, None].to(device), positions[None].to(device)
