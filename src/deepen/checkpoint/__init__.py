"""Tensors as bytes on disk: read by header, moved by byte range, written in bounded shards. Knows no model."""

from deepen.checkpoint.hub import open_headers, resolve
from deepen.checkpoint.reader import Checkpoint, Tensor, open_checkpoint

__all__ = ["Checkpoint", "Tensor", "open_checkpoint", "open_headers", "resolve"]
