"""Interfaces of objectives (losses per scale) and balances (weights of the scales)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from virchow_st.models.losses.targets import BatchCounts


@dataclass(frozen=True)
class DeviceCounts:
    """Sparse counts of a batch as tensors on a device; the fields of `BatchCounts`.

    Attributes:
        start: (B·G + 1,) int64.
        position: (n,) int16; positions are below 2¹⁴.
        count: (n,) float32 UMIs.
        shape: (B, G, R, C).
    """

    start: Tensor
    position: Tensor
    count: Tensor
    shape: tuple[int, int, int, int]


Counts = BatchCounts | DeviceCounts


class Objective(nn.Module):
    """A loss per scale, and the conversion of a decoder's output to rates.

    Parameters of an objective, if any, are learned with those of the decoder and are part of the
    checkpoint.

    Attributes:
        scales_um: Sides of the supervised bins in increasing order, µm.
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        initial_bias: (G,) initial output bias of the decoder, for which `rate` equals
            ``train_rate``.
    """

    scales_um: tuple[int, ...]
    train_rate: Tensor
    initial_bias: Tensor

    @abstractmethod
    def rate(self, output_BGRC: Tensor) -> Tensor:
        """Convert the decoder's output to predicted UMIs per 2 µm bin, of the same shape."""

    def panel_counts(self, counts: Counts) -> Counts:
        """Counts of the genes that `rate` is of, out of those that the loss takes."""
        return counts

    def panel_measured(self, measured_BG: Tensor) -> Tensor:
        """The columns of ``measured_BG`` of the genes that `rate` is of."""
        return measured_BG

    @abstractmethod
    def forward(
        self,
        output_BGRC: Tensor,
        counts: Counts,
        exposure_BRC: Tensor,
        measured_BG: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of each scale.

        A loss is a sum over genes and bins, divided by their number. A gene that a patch's store
        did not measure is in neither, so that its output there has a gradient of 0.

        Args:
            output_BGRC: (B, G, 128, 128) output of the decoder.
            counts: Sparse UMI counts of the same patches and genes; `DeviceCounts` only if the
                output is on a GPU.
            exposure_BRC: (B, 128, 128) float ≥ 0, exposure of each bin: its expected UMIs are
                exposure × rate. Bins of exposure 0, which are those outside tissue, are ignored.
                A bool tissue mask stands for an exposure of 1 in tissue.
            measured_BG: (B, G) bool on the CPU, whether each patch's store measured each gene; G is
                that of the counts. None if every store measured every gene.

        Returns:
            (S,) losses ≥ 0, in at least float32.
        """


def exposed(output_BGRC: Tensor, exposure_BRC: Tensor) -> tuple[Tensor, Tensor]:
    """Add the logarithm of the exposure to log-rates, and give the mask of bins exposed at all.

    The loss of a rate field λ at an exposure e is that of the field Λ = e·λ at an exposure of 1,
    and so are the sums over coarser bins. Both have the same gradient, since their logarithms
    differ by a constant. For rates that are sums of factors, the factors' logarithms do.

    Args:
        output_BGRC: Log-rates, or logarithms of factors.
        exposure_BRC: Float exposure ≥ 0; or a bool mask, with which the output is returned as it
            is.

    Returns:
        Log-rates with the exposure, of the same shape, and bool mask (B, R, C).

    Example:
        >>> output, exposure = torch.zeros(1, 1, 1, 3), torch.tensor([[[0.5, 0.0, 2.0]]])
        >>> log_rate, mask = exposed(output, exposure)
        >>> log_rate.exp()[0, 0, 0], mask[0, 0]
        (tensor([0.5000, 1.0000, 2.0000]), tensor([ True, False,  True]))
    """
    if exposure_BRC.dtype == torch.bool:
        return output_BGRC, exposure_BRC
    mask_BRC = exposure_BRC > 0
    log_exposure_BRC = torch.where(mask_BRC, exposure_BRC, 1.0).log().to(output_BGRC.dtype)
    return output_BGRC + log_exposure_BRC[:, None], mask_BRC


def on_device(counts: Counts, device: torch.device) -> DeviceCounts:
    """Copy sparse counts to a device; `DeviceCounts` are returned unchanged.

    Example:
        >>> import numpy as np
        >>> counts = BatchCounts.of_dense(np.array([[[[0, 2], [0, 1]]]]))
        >>> there = on_device(counts, torch.device("cpu"))
        >>> there.position, there.count
        (tensor([1, 3], dtype=torch.int16), tensor([2., 1.]))
    """
    if isinstance(counts, DeviceCounts):
        return counts
    return DeviceCounts(
        start=torch.from_numpy(counts.start).to(device, non_blocking=True),
        position=torch.from_numpy(counts.position.view("i2")).to(device, non_blocking=True),
        count=torch.from_numpy(counts.count).to(device, non_blocking=True),
        shape=counts.shape,
    )


def genes_of(counts: Counts, genes: Tensor, patches: Tensor | None = None) -> Counts:
    """Counts of some of the genes, in their order and of the same kind as ``counts``.

    Args:
        counts: Sparse counts of (B, G, R, C).
        genes: (P,) int64 indices, 0 to G − 1.
        patches: int64 indices of the patches to take, 0 to B − 1; all by default.

    Example:
        >>> import numpy as np
        >>> counts = BatchCounts.of_dense(np.array([[[[0, 2]], [[1, 0]], [[0, 3]]]]))
        >>> genes_of(counts, torch.tensor([2, 0])).dense()[0, :, 0]
        array([[0., 3.],
               [0., 2.]], dtype=float32)
    """
    is_on_host = isinstance(counts, BatchCounts)
    there = on_device(counts, torch.device("cpu") if is_on_host else genes.device)
    B, G, R, C = there.shape
    genes = genes.to(there.start.device)
    taken = torch.arange(B) if patches is None else patches
    taken = taken.to(genes.device)
    maps = (taken[:, None] * G + genes).flatten()
    first = there.start[maps]
    size = there.start[maps + 1] - first
    ends = size.cumsum(0)
    start = torch.cat([ends.new_zeros(1), ends])
    entry = torch.repeat_interleave(first - start[:-1], size) + torch.arange(
        int(ends[-1]), device=genes.device
    )
    shape = (len(taken), len(genes), R, C)
    position, count = there.position[entry], there.count[entry]
    if is_on_host:
        return BatchCounts(start.numpy(), position.numpy().view("u2"), count.numpy(), shape)
    return DeviceCounts(start, position, count, shape)


def dense_counts(counts: Counts, device: torch.device) -> Tensor:
    """Dense counts (B, G, R, C), float32 UMIs, on a device; only non-zero entries are copied.

    Example:
        >>> import numpy as np
        >>> counts = BatchCounts.of_dense(np.array([[[[0, 2], [0, 1]]]]))
        >>> dense_counts(counts, torch.device("cpu"))
        tensor([[[[0., 2.],
                  [0., 1.]]]])
    """
    there = on_device(counts, device)
    B, G, R, C = there.shape
    maps = torch.arange(B * G, device=device) * (R * C)
    n = len(there.count)
    first = torch.repeat_interleave(maps, there.start.diff(), output_size=n)
    dense = torch.zeros(there.shape, device=device)
    dense.view(-1)[first + there.position] = there.count
    return dense


class Balance(nn.Module):
    """Weights of the losses of several tasks.

    Attributes:
        weights: (n_tasks,) positive weights.
        needs_gradient_norms: Whether `update` needs gradient norms.
    """

    weights: Tensor
    needs_gradient_norms: bool

    @abstractmethod
    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """Update the weights by one step; called at every optimiser step.

        Args:
            losses: (n_tasks,) unweighted positive losses.
            gradient_norms: (n_tasks,) ``‖∇_W L_i‖`` of the unweighted losses, or None if they are
                not needed.
        """
