"""Prune, distill, quantize, export and benchmark causal language models."""

__version__ = "0.1.0"
