"""Losses of the batches of an epoch, checked without making a GPU wait."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from virchow_st.training.dataset import BatchPlan


class LossWatch:
    """Sums losses over patches and raises an error for losses that are not finite.

    On a CPU losses are checked immediately. On a GPU their copy to the host is started, and they
    are checked when the next batch arrives, because waiting would empty the queue of kernels.

    Args:
        n_scales: Number of losses per batch, S.
        device: Device of the losses.
        refusal: Creates the error to raise for a batch whose losses are not finite.

    Attributes:
        sums_S: (S,) sum of losses times patches, on the device.
    """

    def __init__(
        self, n_scales: int, device: torch.device, refusal: Callable[[BatchPlan], BaseException]
    ) -> None:
        self._refusal = refusal
        self._on_gpu = device.type == "cuda"
        self._free = [torch.empty(n_scales, pin_memory=self._on_gpu) for _ in range(2)]
        self._pending: tuple[BatchPlan, Tensor, torch.cuda.Event | None] | None = None
        self.sums_S = torch.zeros(n_scales, device=device)
        self._seen, self._n_seen = [0.0] * n_scales, 0

    def look(self, plan: BatchPlan, losses_S: Tensor) -> None:
        """Add the losses of a batch; raises for this batch, or on a GPU for the one before."""
        self.sums_S += losses_S * len(plan)
        if self._on_gpu:
            self.finish()
        host_S = self._free.pop()
        host_S.copy_(losses_S, non_blocking=True)
        event = torch.cuda.current_stream(losses_S.device).record_event() if self._on_gpu else None
        self._pending = plan, host_S, event
        if not self._on_gpu:
            self.finish()

    def finish(self) -> None:
        """Check the losses whose copy to the host is pending."""
        if self._pending is None:
            return
        plan, host_S, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        losses = host_S.tolist()
        self._free.append(host_S)
        if not all(map(math.isfinite, losses)):
            raise self._refusal(plan)
        self._n_seen += len(plan)
        for i, loss in enumerate(losses):
            self._seen[i] += loss * len(plan)

    @property
    def means(self) -> list[float]:
        """Mean loss per patch at each scale over the batches checked so far, for display."""
        return [total / max(self._n_seen, 1) for total in self._seen]
