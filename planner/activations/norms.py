"""What a norm keeps. Symbols: n elements and r normalised rows per token, e bytes of an element.

RMS norms compute in fp32: the fp32 copy of the input is kept (in fp32 training: the input itself), one 1/rms per row,
and for the gradient of the weight the normalised input, in the training precision (RMS) or in fp32 (RMS_FP32).
Layer norms are one kernel: their input as it came, and mean and 1/deviation in fp32.

Source:
    transformers 5.23.0 models/llama/modeling_llama.py ``LlamaRMSNorm``, models/gemma/modeling_gemma.py
    ``GemmaRMSNorm``, models/olmo2/modeling_olmo2.py ``Olmo2RMSNorm``; torch 2.13.0 ``native_layer_norm``.
"""

from __future__ import annotations

from ..model import NormStyle
from .kept import FP32, Recipe


def rms_per_token(style: NormStyle, elements: int, rows: int, recipe: Recipe) -> int:
    """4 n + 4 r + (e n, or 4 n in RMS_FP32, where the weight is trained) bytes per token.

    >>> rms_per_token(NormStyle.RMS, 4096, 1, Recipe(hidden=4096, element=2, eager=False, adapters=None))  # 6 h + 4
    24580
    """
    if recipe.fused:  # the input as it came; its result is what the next projection keeps
        return recipe.element * elements + FP32 * rows
    normalised = FP32 if style is NormStyle.RMS_FP32 else recipe.element
    return FP32 * (elements + rows) + recipe.trained(normalised * elements)


def norm_per_token(style: NormStyle, elements: int, recipe: Recipe) -> int:
    """One norm over the hidden size, its input included."""
    if style is NormStyle.LAYER:
        return recipe.element * elements + LAYER_STATISTICS
    return rms_per_token(style, elements, 1, recipe)


LAYER_STATISTICS = 2 * FP32  # mean and 1/deviation of one row
