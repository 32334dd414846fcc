"""Encoders that are torch networks; on a GPU batches are encoded asynchronously."""

from __future__ import annotations

from abc import abstractmethod
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

# Images per batch. On a GPU a larger batch no longer makes a ViT-H faster, because its matrix
# products already fill the device. On a CPU single images are nearly as fast, and Ctrl-C has to
# wait for a batch.
_CUDA_BATCH, _CPU_BATCH = 64, 4
_CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # other CPUs only emulate bfloat16, which is slow


class NetworkEncoder(Encoder):
    """Encoder that runs a torch network; what its tokens are, a subclass says.

    Matrix products are computed in ``precision`` (with bfloat16 the tokens of Virchow2's
    architecture have an error of about 0.5 %), everything else in float32. The tokens are rounded
    to float16 on the device.

    Args:
        model: The network; it is modified in place.
        name: Name of the encoder, as given to ``--encoder``.
        dim: Number of channels of a token.
        image_px: Side of the input image, px.
        colours: Mean and standard deviation of the RGB channels in the model's training, 0–1.
        weights_hash: Hash of the parameters, see `parameters_hash`.
        licence: Terms of use of the tokens.
        device: Device to run on.
        precision: Floating point type of matrix products; `native_precision` of the device if None.

    Raises:
        ConfigError: The device has not enough memory for the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        name: str,
        dim: int,
        image_px: int,
        colours: tuple[Colour, Colour],
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
        self.dim = dim
        self.grid = GRID
        self.image_px = image_px
        self.weights_hash = weights_hash
        self.licence = licence
        self.device = device
        self.precision = str(self._dtype).removeprefix("torch.")
        mean, std = colours
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(3, 1, 1) * 255
        self._on_cuda = device.type == "cuda"
        self.batch = _CPU_BATCH
        if self._on_cuda:
            self._copies = torch.cuda.Stream(device)  # copies tokens while the next batch runs
            self.batch = self.largest_batch(_CUDA_BATCH)

    def encode(self, images: UInt8Array) -> Tokens:
        """Encode RGB images (B, image_px, image_px, 3) uint8 in one forward pass."""
        return self.launch(images)()

    def launch(self, images: UInt8Array) -> Callable[[], Tokens]:
        """Start to encode; see `Encoder.launch`. On the CPU the batch is finished on return."""
        self._check_images(images)
        try:
            with torch.inference_mode():
                return self._to_host(*self._forward(images))
        except torch.cuda.OutOfMemoryError:
            pass  # handled below, because the traceback in here would keep the batch's memory
        torch.cuda.empty_cache()
        raise MemoryError(f"{len(images)} images at once are too many for {self.device}")

    def _forward(self, images: UInt8Array) -> tuple[Tensor, Tensor]:
        """(B, S, S, 3) uint8 to (B, T, T, D) and (B, D) float16 on the device."""
        on_host = torch.empty(images.shape, dtype=torch.uint8, pin_memory=self._on_cuda)
        on_host.numpy()[...] = images
        x = on_host.to(self.device, non_blocking=True)  # copied as uint8, a quarter of float32
        x = (x.permute(0, 3, 1, 2).float() - self._mean) / self._std  # (B, 3, S, S)
        mixed = self._dtype is not torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=mixed):
            tokens, cls = self._tokens(x)
        return tokens.half(), cls.half()

    @abstractmethod
    def _tokens(self, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, T, D) and class vectors (B, D) of normalised images."""

    def _to_host(self, tokens: Tensor, cls: Tensor) -> Callable[[], Tokens]:
        """Start to copy tokens to the host; returns a function that waits for the copy."""
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
                made.record_stream(self._copies)  # keeps the memory until the copy is done
            copied.record()

        def wait() -> Tokens:
            copied.synchronize()
            return Tokens(_array(on_host[0]), _array(on_host[1]))

        return wait

    def largest_batch(self, most: int) -> int:
        """Largest batch that fits the device's memory: ``most``, halved until it fits."""
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
    """Fastest type for matrix products: bfloat16; float16 on older GPUs, float32 on older CPUs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.half
    try:
        flags = set(Path("/proc/cpuinfo").read_text("utf-8").split())
    except OSError:
        flags = set()
    return torch.bfloat16 if flags & _CPU_BFLOAT16 else torch.float32
