# SPDX-License-Identifier: Apache-2.0
"""What an attention layer of someone else's model did, for those who watch."""

from __future__ import annotations

import dataclasses
from typing import Optional

from torch import Tensor

from ._mask import Mask
from ._plan import Plan
from ._sequences import Tokens


@dataclasses.dataclass(frozen=True)
class Call:
    """What an attention layer did, for `observe`. The tensors are those of the model, [B, H, S, D]; of a padded or packed batch, a method's are those of
    the sequences of one length, each on its own tokens: `sequences` says which, one for each entry of q."""

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    plan: Optional[Plan]  # None: dense decode
    mask: Optional[Mask]  # the model's own; None: a ready-made one
    plan_ms: float
    scale: float
    softcap: float = 0.0
    sink_logit: Optional[Tensor] = None
    sequences: tuple[Tokens, ...] = ()
    name: str = ""  # the layer's place in a model of diffusers
