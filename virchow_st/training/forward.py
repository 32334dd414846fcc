"""Forward pass of the decoder in training: bfloat16, compilation and several processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.models.decoders import decode
from virchow_st.models.decoders.base import Decoder
from virchow_st.models.decoders.variation import RandomLayer
from virchow_st.runtime.distributed import Processes
from virchow_st.training.feed.base import DeviceBatch

# Compiling takes about a minute and saves some milliseconds per batch.
_BATCHES_WORTH_COMPILING = 10_000


class Forward:
    """Runs a decoder on batches, with float32 outputs.

    Args:
        decoder: The decoder that is trained, on the device.
        device: CPU or CUDA device.
        processes: Processes that share every batch. A backward pass averages their gradients.
        is_compiled: Whether to compile the decoder, except its head, with `torch.compile`.

    Attributes:
        about: Description of precision, compilation and processes; empty for one CPU process.
    """

    def __init__(
        self, decoder: Decoder, device: torch.device, processes: Processes, is_compiled: bool
    ) -> None:
        self._decoder, self._device, self._processes = decoder, device, processes
        on_gpu = device.type == "cuda"
        # Older GPUs only emulate bfloat16, which is slow, so float32 is used there.
        self._in_bfloat16 = on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)
        self._drawings = [m for m in decoder.modules() if isinstance(m, RandomLayer)]
        self._called: Callable[..., Tensor] = decoder
        if is_compiled:
            features = torch.compile(decoder.features, dynamic=False)
            self._called = _Compiled(decoder, features)
        self._parallel: DistributedDataParallel | None = None
        if processes.size > 1:
            # Harmless warning: DDP compares the strides of dimensions of size 1.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            # Buffers are constant, so they need not be synchronised at every step.
            known = signature(DistributedDataParallel.__init__).parameters
            kept = (
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            )
            keep_buffers: dict[str, Any] = {kept: False}
            self._called = self._parallel = DistributedDataParallel(
                self._called,
                device_ids=[device] if on_gpu else None,
                gradient_as_bucket_view=True,
                **keep_buffers,
            )
        words = {
            "in bfloat16": self._in_bfloat16,
            "compiled": is_compiled,
            f"in {processes.size} processes": processes.size > 1,
        }
        self.about = ", ".join(word for word, holds in words.items() if holds)

    def __call__(self, batch: DeviceBatch, part: slice, n_whole: int) -> Tensor:
        """Run the decoder on this process's part of a batch; returns (B, G, 128, 128) float32.

        Args:
            batch: This process's part of a batch.
            part: Range of its patches within the whole batch.
            n_whole: Number of patches of the whole batch.
        """
        for drawing in self._drawings:
            drawing.part_of = None if self._parallel is None else (part.start, n_whole)
        return self.of(self._called, batch)

    def of(self, decoder: Callable[..., Tensor], batch: DeviceBatch) -> Tensor:
        """Run any decoder on a batch in the same precision; returns (B, G, 128, 128) float32."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._in_bfloat16):
            return decode(decoder, batch.tokens, batch.image, self._device).float()

    def gradients_summed(self, when: bool) -> AbstractContextManager[None]:
        """Context in which backward passes average gradients over processes only if ``when``."""
        if self._parallel is None or when:
            return nullcontext()
        return self._parallel.no_sync()


class _Compiled(nn.Module):
    """A decoder with compiled features and an uncompiled head."""

    def __init__(self, decoder: Decoder, features: Callable[..., Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        self.features = features

    def forward(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None = None) -> Tensor:
        try:
            features_BCRR = self.features(tokens_BTTD, image_B3PP)
        except torch._dynamo.exc.TorchDynamoException as e:  # such as a missing C compiler
            reason = str(e).strip().splitlines()[0]
            raise ConfigError(
                f"compile: torch could not compile the decoder ({reason}); train with --compile "
                "never"
            ) from e
        return self.decoder.head(features_BCRR)


def worth_compiling(config: TrainConfig, device: torch.device, n_batches: int) -> bool:
    """Whether to compile the decoder for a run of ``n_batches``, according to ``--compile``."""
    if config.compile == "auto":
        return device.type == "cuda" and n_batches >= _BATCHES_WORTH_COMPILING
    return config.compile == "always"
