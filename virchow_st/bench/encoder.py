"""The encoder that a benchmark runs, with random weights where Virchow2's are not at hand."""

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


def open_encoder(name: str, weights: str, random_weights: bool, device: str) -> Encoder:
    """The encoder of ``--encoder``, or Virchow2 as it is before any training.

    Args:
        name: as `load_encoder` takes it; with ``random_weights`` virchow2 is the only one.
        weights: a local file, or empty.
        random_weights: as fast as the real ones, and good for nothing else.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: options that exclude each other, or as `load_encoder`.
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
    )


def flops_of(encoder: ViTEncoder, images: UInt8Array) -> float:
    """Floating point operations an image, as torch counts them: of products and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder.encode(images[:1])
    return float(counter.get_total_flops())


class Timed(Encoder):
    """An encoder that keeps the seconds in which the device was at work for it.

    On a GPU the device's own clock says so: from where a batch begins in its queue to where it
    ends, whatever the program does meanwhile.
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
        """So far; on a GPU once the last tokens have been waited for."""
        return self._host_s + sum(a.elapsed_time(b) for a, b in self._batches) / 1e3

    def encode(self, images: UInt8Array) -> Tokens:
        """Encode a batch."""
        return self.launch(images)()

    def launch(self, images: UInt8Array) -> Callable[[], Tokens]:
        """Begin to encode a batch; see `Encoder.launch`."""
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
