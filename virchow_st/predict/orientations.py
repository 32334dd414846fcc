"""A decoder's output, averaged over the eight orientations in which a patch can lie.

Which way a section lay on the scanner means nothing, but a decoder's output depends on it a
little, although it was trained in all orientations. The mean of the outputs on the patch in each of
them, turned back, does not, and its errors are smaller, as those of an ensemble are.

Shape suffixes: B patches, T tokens per side, D token channels, P image px per side, K maps, R bins
per side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from virchow_st.kernels.orientation import N_ORIENTATIONS, quarter_turns
from virchow_st.models.encoders.base import dihedral_channels


class Orientations:
    """The orientations that a run's outputs are averaged over.

    Args:
        layout: Channels of a token that turn with the patch, as `Encoder.layout`.
        dim: Channels of a token, D.
        n: 8, or 1 for the patch as it lies.
    """

    def __init__(self, layout: Sequence[Sequence[int]], dim: int, n: int = N_ORIENTATIONS) -> None:
        orders = (dihedral_channels(layout, dim, *quarter_turns(o)) for o in range(n))
        self._orders = [None if order is None else torch.from_numpy(order) for order in orders]

    @classmethod
    def of_run(cls, state: Mapping[str, Any], n: int) -> Orientations:
        """Those of a run with this state; a run of virchow_st 0.1 does not say which channels turn.

        Its predictions are of the patch as it lies.
        """
        return cls(state.get("token_layout", []), state["dim"], n if "token_layout" in state else 1)

    def __len__(self) -> int:
        return len(self._orders)

    def mean(
        self,
        predict: Callable[[Tensor, Tensor | None], Tensor],
        tokens_BTTD: Tensor,
        image_BPP3: Tensor | None,
        some: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean of a prediction over the orientations.

        Args:
            predict: Maps tokens and image of patches to (B, K, R, R) rates or factors, UMIs per bin
                (not their logarithms, whose mean is another rate's).
            tokens_BTTD: Tokens, on any device.
            image_BPP3: Image, or None.
            some: The orientations to take; None for all of them.

        Returns:
            (B, K, R, R) as ``predict`` returns it for the patch as it lies.
        """
        total: Tensor | None = None
        which = range(len(self)) if some is None else some
        for orientation in which:
            order = self._orders[orientation]
            tokens = turned(tokens_BTTD, orientation, (1, 2))
            if order is not None:
                tokens = tokens[..., order.to(tokens.device)]
            image = None if image_BPP3 is None else turned(image_BPP3, orientation, (1, 2))
            maps = turned_back(predict(tokens, image), orientation, (2, 3))
            total = maps if total is None else total.add_(maps)
        assert total is not None
        return total if len(which) == 1 else total.div_(len(which))


def turned(x: Tensor, orientation: int, axes: tuple[int, int]) -> Tensor:
    """Turn the (row, col) axes of a tensor, as `virchow_st.kernels.orientation.turn` does.

    Example:
        >>> turned(torch.tensor([[1, 2], [3, 4]]), 1, (0, 1)).tolist()
        [[2, 4], [1, 3]]
    """
    k, is_flipped = quarter_turns(orientation)
    return torch.rot90(x.flip(axes[1]) if is_flipped else x, k, axes)


def turned_back(x: Tensor, orientation: int, axes: tuple[int, int]) -> Tensor:
    """Undo `turned`.

    Example:
        >>> turned_back(torch.tensor([[2, 4], [1, 3]]), 1, (0, 1)).tolist()
        [[1, 2], [3, 4]]
    """
    k, is_flipped = quarter_turns(orientation)
    back = torch.rot90(x, -k, axes)
    return back.flip(axes[1]) if is_flipped else back
