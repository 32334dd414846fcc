"""Vision transformers built by timm: tokens from images, on a GPU without waiting for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from virchow_st.errors import ConfigError
from virchow_st.models.encoders.base import Encoder, Tokens
from virchow_st.models.encoders.published import Colour
from virchow_st.types import Array, UInt8Array

GRID = 16
IMAGE_PX = {14: 14 * GRID, 16: 16 * GRID}  # side of a ViT's patch → side of the image, px

# Images at once. On a GPU more than these no longer raise the rate of a ViT-H: its products fill
# the device. On a CPU one by one is nearly as fast, and Ctrl-C waits for a batch.
_CUDA_BATCH, _CPU_BATCH = 64, 4
_CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # without these a CPU only emulates it, slowly


class ViTEncoder(Encoder):
    """A timm ViT: its normalised last-layer patch tokens, row-major; registers are dropped.

    Matrix products are in ``precision`` (bfloat16 makes tokens of Virchow2's architecture err by
    about 0.5 %), all else in float32; tokens are rounded to float16 where they are made.

    Args:
        model: a timm ViT whose ``forward_features`` gives (B, n_prefix + 256, D); it is changed.
        name: what ``--encoder`` called it.
        image_px: side of the input image, px.
        colours: mean and deviation of the RGB channels in the model's own training, 0–1.
        n_prefix: tokens before the patch tokens: the class token, then any registers.
        weights_hash: see `parameters_hash`.
        licence: what may be done with the tokens.
        device: where it runs.
        precision: of the products; `native_precision` of the device when None.

    Raises:
        ConfigError: the device has no room for the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        name: str,
        image_px: int,
        colours: tuple[Colour, Colour],
        n_prefix: int,
        weights_hash: str,
        licence: str,
        device: torch.device,
        precision: torch.dtype | None = None,
    ) -> None:
        self._dtype = native_precision(device) if precision is None else precision
        if self._dtype is not torch.float32:
            for layer in model.modules():  # as autocast would do with the weights at every batch
                if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                    layer.to(self._dtype)
        try:
            self.model = model.requires_grad_(False).eval().to(device)
        except torch.cuda.OutOfMemoryError:
            raise ConfigError(
                f"{name}: the model does not fit the memory that is free on {device}; end what "
                "else uses it, or give another --device"
            ) from None
        self.name = name
        self.dim = int(model.embed_dim)  # type: ignore[arg-type]
        self.grid = GRID
        self.image_px = image_px
        self.weights_hash = weights_hash
        self.licence = licence
        self.device = device
        self.precision = str(self._dtype).removeprefix("torch.")
        self._n_prefix = n_prefix
        self._has_cls = getattr(model, "cls_token", None) is not None
        mean, std = colours
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(3, 1, 1) * 255
        self._on_cuda = device.type == "cuda"
        self.batch = _CPU_BATCH
        if self._on_cuda:
            self._copies = torch.cuda.Stream(device)  # tokens leave while the next batch is made
            self.batch = self.largest_batch(_CUDA_BATCH)

    def encode(self, images: UInt8Array) -> Tokens:
        """Encode RGB images (B, image_px, image_px, 3) uint8 in one pass: B is the batch.

        ``cls`` is the class token, or the mean of the patch tokens in a model without one.
        """
        return self.launch(images)()

    def launch(self, images: UInt8Array) -> Callable[[], Tokens]:
        """Begin to encode; see `Encoder.launch`. On the CPU it is done when this returns."""
        self._check_images(images)
        try:
            with torch.inference_mode():
                return self._to_host(*self._forward(images))
        except torch.cuda.OutOfMemoryError:
            pass  # outside of the handler, whose traceback keeps the batch's memory
        torch.cuda.empty_cache()
        raise MemoryError(f"{len(images)} images at once are too many for {self.device}")

    def _forward(self, images: UInt8Array) -> tuple[Tensor, Tensor]:
        """(B, S, S, 3) uint8 to (B, T, T, D) and (B, D) float16 on the device."""
        on_host = torch.empty(images.shape, dtype=torch.uint8, pin_memory=self._on_cuda)
        on_host.numpy()[...] = images
        x = on_host.to(self.device, non_blocking=True)  # uint8 crosses the bus
        x = (x.permute(0, 3, 1, 2).float() - self._mean) / self._std  # (B, 3, S, S)
        mixed = self._dtype is not torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=mixed):
            y = self.model.forward_features(x)  # type: ignore[operator]
        patch = y[:, self._n_prefix :]  # of (B, n_prefix + 256, D)
        cls = y[:, 0] if self._has_cls else patch.float().mean(1)
        return patch.unflatten(1, (GRID, GRID)).half(), cls.half()

    def _to_host(self, tokens: Tensor, cls: Tensor) -> Callable[[], Tokens]:
        """Begin to copy to memory; what comes back waits for it."""
        if not self._on_cuda:
            done = Tokens(_array(tokens), _array(cls))
            return lambda: done
        copied = torch.cuda.Event()
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            on_host = []
            for made in (tokens, cls):
                pinned = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
                on_host.append(pinned.copy_(made, non_blocking=True))
                made.record_stream(self._copies)  # its memory is not used anew before
            copied.record()

        def wait() -> Tokens:
            copied.synchronize()
            return Tokens(_array(on_host[0]), _array(on_host[1]))

        return wait

    def largest_batch(self, most: int) -> int:
        """How many images the device takes at once: ``most``, or that halved until it does."""
        n = most
        while n > 1:
            try:
                self.encode(np.zeros((n, self.image_px, self.image_px, 3), np.uint8))
            except MemoryError:
                n //= 2
            else:
                break
        return n


def _array(x: Tensor) -> Array:
    return x.contiguous().numpy()


def native_precision(device: torch.device) -> torch.dtype:
    """What a device multiplies fast: bfloat16, float16 on older GPUs, float32 on older CPUs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.half
    try:
        flags = set(Path("/proc/cpuinfo").read_text("utf-8").split())
    except OSError:
        flags = set()
    return torch.bfloat16 if flags & _CPU_BFLOAT16 else torch.float32
