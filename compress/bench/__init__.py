"""Benchmarks: one FFN in every way that runs it on a CPU, side by side, from memory and not from cache."""

from .layers import dense_layers, random_students
from .report import draw
from .run import bench

__all__ = ["bench", "dense_layers", "draw", "random_students"]
