"""BrainNetCNN: convolutions whose filters are the crosses of an FC matrix.

Kawahara et al., "BrainNetCNN: Convolutional neural networks for brain networks; towards predicting neurodevelopment",
NeuroImage 146, 2017. The widths are those of the implementation that the field compares with (two edge-to-edge layers of
32 and 64 maps, one edge-to-node map, 256 - 128 - 30); edge-to-node filters run along rows only, there as in the authors' code.

What an edge-to-edge layer says of edge (i, j) is a value of row i plus a value of column j. The maps, 2.5 million values a
scan, are therefore never kept: they are made from rows and columns where they are needed, a scan at a time.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from openbrainmass.model.rivals.training import Network

LEAK = 0.33
"""Slope below zero of every activation."""

DROPOUT = 0.5
"""Share of values dropped after the graph layer and the dense layers."""


class _CrossProducts(torch.autograd.Function):
    """Row and column filters applied to leaky ReLU of (rows + columns), whose maps are made again for the gradient."""

    @staticmethod
    def forward(ctx, rows, columns, along_row, along_column):
        ctx.save_for_backward(rows, columns, along_row, along_column)
        maps = rows.new_empty(rows.shape[1], *columns.shape[1:])
        new_rows = rows.new_empty(*rows.shape[:2], len(along_row))
        new_columns = rows.new_empty(len(rows), len(along_column), columns.shape[2])
        for scan in range(len(rows)):
            _make_maps(rows[scan], columns[scan], maps)
            torch.matmul(maps.flatten(1), along_row.T, out=new_rows[scan])
            torch.matmul(along_column, maps.flatten(0, 1), out=new_columns[scan])
        return new_rows, new_columns

    @staticmethod
    def backward(ctx, row_gradient, column_gradient):
        rows, columns, along_row, along_column = ctx.saved_tensors
        maps = rows.new_empty(rows.shape[1], *columns.shape[1:])
        change = torch.empty_like(maps)
        gradients = [torch.zeros_like(saved, dtype=torch.float32) for saved in ctx.saved_tensors]
        for scan in range(len(rows)):
            _make_maps(rows[scan], columns[scan], maps)
            gradients[2] += row_gradient[scan].T @ maps.flatten(1)
            gradients[3] += column_gradient[scan] @ maps.flatten(0, 1).T
            torch.matmul(row_gradient[scan], along_row, out=change.flatten(1))
            change.flatten(0, 1).addmm_(along_column.T, column_gradient[scan])
            change = torch.ops.aten.leaky_relu_backward.grad_input(change, maps, LEAK, True, grad_input=change)
            gradients[0][scan] = change.sum(dim=2)
            gradients[1][scan] = change.sum(dim=0)
        return tuple(gradient.to(rows.dtype) for gradient in gradients)


def _make_maps(rows: torch.Tensor, columns: torch.Tensor, maps: torch.Tensor) -> None:
    """Leaky ReLU of rows ``(n_rois, n_maps)`` plus columns ``(n_maps, n_rois)``, written to ``maps`` (row, map, column)."""
    torch.add(rows.unsqueeze(-1), columns.unsqueeze(0), out=maps)
    functional.leaky_relu_(maps, LEAK)


def cross_to_node(rows: torch.Tensor, columns: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One row filter applied to leaky ReLU of (rows + columns), without making the maps.

    With the columns in falling order, those that make a sum positive come first, and their part is a cumulative sum.

    Parameters
    ----------
    rows, columns : Tensor (n, n_rois, n_maps), (n, n_maps, n_rois)
        What is added at each edge.
    weight : Tensor (n_maps, n_rois)
        The filter.

    Returns
    -------
    Tensor (n, n_rois)
    """
    across = rows.transpose(1, 2).contiguous()
    ordered, order = columns.sort(dim=-1, descending=True)
    weights = weight.expand_as(ordered).gather(-1, order)
    n_positive = torch.searchsorted(-ordered.detach(), across.detach())
    slopes = functional.pad(weights.cumsum(dim=-1), (1, 0))
    offsets = functional.pad((weights * ordered).cumsum(dim=-1), (1, 0))
    positive = across * slopes.gather(-1, n_positive) + offsets.gather(-1, n_positive)
    total = across * slopes[..., -1:] + offsets[..., -1:]
    return (LEAK * total + (1 - LEAK) * positive).sum(dim=1)


class BrainNetCNN(Network):
    """Edge to edge twice, edge to node, node to graph, two dense layers.

    Parameters
    ----------
    n_rois : int
        ROIs of the atlas.
    n_classes : int
        Logits.
    """

    def __init__(self, n_rois: int, n_classes: int) -> None:
        super().__init__(n_rois, n_classes)
        self.first_row, self.first_column = nn.Linear(n_rois, 32), nn.Linear(n_rois, 32)
        self.second_row, self.second_column = nn.Linear(32 * n_rois, 64), nn.Linear(32 * n_rois, 64)
        self.to_node = nn.Linear(64 * n_rois, 1)
        self.dense = nn.ModuleList([nn.Linear(n_rois, 256), nn.Linear(256, 128), nn.Linear(128, 30)])
        self.head = nn.Linear(30, n_classes)

    def forward(self, fc: torch.Tensor) -> torch.Tensor:
        """FC ``(n, n_rois, n_rois)`` in, logits ``(n, n_classes)`` out."""
        rows = self.first_row(fc)
        columns = self.first_column(fc.transpose(1, 2)).transpose(1, 2).contiguous()
        filters = self.second_row.weight.to(rows.dtype), self.second_column.weight.to(rows.dtype)
        rows, columns = _CrossProducts.apply(rows, columns, *filters)
        rows, columns = rows.float() + self.second_row.bias, columns.float() + self.second_column.bias[:, None]
        nodes = cross_to_node(rows, columns, self.to_node.weight.view(64, -1)) + self.to_node.bias
        values = functional.leaky_relu(nodes, LEAK)
        for layer in self.dense:
            values = functional.dropout(functional.leaky_relu(layer(values), LEAK), DROPOUT, self.training)
        return self.head(values)
