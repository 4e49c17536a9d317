# SPDX-License-Identifier: Apache-2.0
"""An operator for compiled graphs, in which no branch may depend on what a tensor holds: `tilewise::spans_of_rows` makes a mask small."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _mask


@torch.library.custom_op("tilewise::spans_of_rows", mutates_args=())
def spans_of_rows(allowed: Tensor) -> Tensor:
    """int32 [..., 4] of bool [..., Sk]: _mask.spans_of_rows."""
    return _mask.spans_of_rows(allowed)


@spans_of_rows.register_fake
def _(allowed: Tensor) -> Tensor:
    return torch.empty((*allowed.shape[:-1], 4), dtype=torch.int32)
