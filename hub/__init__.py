"""Converters of original checkpoints."""

from .convert import CONVERTERS, convert_original, load_original_state_dict

__all__ = ["CONVERTERS", "convert_original", "load_original_state_dict"]
