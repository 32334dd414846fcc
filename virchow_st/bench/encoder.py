"""Encoder of a benchmark, optionally Virchow2's architecture with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders.base import Encoder, Tokens
from virchow_st.runtime.devices import pick_device
from virchow_st.types import UInt8Array

if TYPE_CHECKING:
    import torch

    from virchow_st.models.encoders.vit import ViTEncoder

RANDOM = "Virchow2's architecture, random weights"


def open_encoder(
    name: str,
    weights: str,
    random_weights: bool,
    device: str,
    precision: torch.dtype | None = None,
) -> Encoder:
    """Load the encoder that ``--encoder`` names, or Virchow2 with random weights.

    Args:
        name: Name as for `load_encoder`; ignored with ``random_weights``, except for its check.
        weights: Local weights file, or empty.
        random_weights: Use Virchow2 with random weights, which is as fast as with trained ones.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: Type of the matrix products with random weights; the device's own if None.

    Raises:
        ConfigError: The options exclude each other, or as for `load_encoder`.
    """
    if not random_weights:
        return load_encoder(name, weights=weights, device=device)
    if weights or name not in ("stain", "virchow2"):  # stain: the default, not a choice
        raise ConfigError(
            "--random-weights: expected it without --weights and with no encoder but virchow2; "
            f"got --encoder {name} --weights {weights!r}"
        )
    import torch

    from virchow_st.models.encoders.published import VIRCHOW2
    from virchow_st.models.encoders.vit import IMAGE_PX, ViTEncoder

    place = pick_device(device)
    with place:
        torch.manual_seed(0)
        model = VIRCHOW2.model()
    return ViTEncoder(
        model,
        name=RANDOM,
        image_px=IMAGE_PX[14],
        colours=VIRCHOW2.colours,
        n_prefix=5,
        weights_hash="random",
        licence="",
        device=place,
        precision=precision,
    )


def flops_of(encoder: ViTEncoder, images: UInt8Array) -> float:
    """Floating point operations per image in matrix products and attention, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder.encode(images[:1])
    return float(counter.get_total_flops())


class Timed(Encoder):
    """Wraps an encoder and measures the seconds that the device spends on it.

    On a GPU they are measured with the device's clock, from the start to the end of each batch in
    the queue, independent of the host.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.name, self.dim, self.grid = encoder.name, encoder.dim, encoder.grid
        self.image_px, self.weights_hash = encoder.image_px, encoder.weights_hash
        self.licence, self.layout = encoder.licence, encoder.layout
        self.precision, self.batch = encoder.precision, encoder.batch
        self._device: torch.device | None = getattr(encoder, "device", None)
        self._host_s = 0.0
        self._batches: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """Seconds so far; on a GPU valid once the last tokens have arrived."""
        return self._host_s + sum(a.elapsed_time(b) for a, b in self._batches) / 1e3

    def encode(self, images: UInt8Array) -> Tokens:
        """Encode a batch."""
        return self.launch(images)()

    def launch(self, images: UInt8Array) -> Callable[[], Tokens]:
        """Start to encode a batch; see `Encoder.launch`."""
        if self._device is None or self._device.type != "cuda":
            start = time.perf_counter()
            wait = self._encoder.launch(images)
            self._host_s += time.perf_counter() - start
            return wait
        import torch

        queue = torch.cuda.current_stream(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(queue)
        wait = self._encoder.launch(images)
        end.record(queue)
        self._batches.append((begin, end))
        return wait
