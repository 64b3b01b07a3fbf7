"""QLoRA: LoRA on a base model whose linear weights are stored in 4-bit NormalFloat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..planner.computation import Adapters
from ..planner.ledger import ALWAYS, BACKWARDS, Device, Entry, Item, Ledger, Phase
from ..planner.model import Model, ParameterKind
from ..planner.states import quantized_tensors, trained_tensors, unquantized_tensors
from ..planner.transform import Setting

BLOCK = 64  # elements that share one scale; bitsandbytes 0.50.2 functional.quantize_4bit, default for NF4
SCALE_BLOCK = 256  # scales that share one second-level scale under double quantisation
CODE_BYTES = 64  # 16 fp32 code values per tensor
SECOND_CODE_BYTES = 4 + 1024  # offset and 256 fp32 code values per tensor under double quantisation
NOT_QUANTIZED = "bitsandbytes replaces nn.Linear only: embeddings, norms, lm_head and stacked experts stay in 16 bit"


def scales_bytes(numel: int, *, double_quantization: bool) -> int:
    """Bytes beside the packed nibbles of one NF4 tensor.

        n = ceil(numel / 64) scales;  4 n + 64                       single
        n + 4 ceil(n / 256) + 64 + 1028                              double

    Source:
        bitsandbytes 0.50.2, Linear4bit quantised on the CPU and walked. Memory model §W3.

    >>> scales_bytes(64 * 256, double_quantization=True), scales_bytes(64 * 256, double_quantization=False)
    (1352, 1088)
    """
    scales = -(-numel // BLOCK)
    if not double_quantization:
        return 4 * scales + CODE_BYTES
    return scales + 4 * -(-scales // SCALE_BLOCK) + CODE_BYTES + SECOND_CODE_BYTES


def largest_linear(model: Model) -> int:
    """Elements of the largest quantised weight: what is dequantised at once."""
    return max(
        (p.numel for b, _ in model.distinct_blocks for p in b.parameters if p.kind is ParameterKind.LINEAR), default=0
    )


# Families whose base cannot be quantised: transformers 5.23.0 models/mamba/modeling_mamba.py, MambaMixer.forward;
# integrations/bitsandbytes.py, replace_with_bnb_linear: ``type(module) is nn.Linear`` leaves out FalconLinear.
UNFIT = {
    "mamba": "its fused kernel multiplies by the stored weights, which 4-bit layers pack",
    "falcon": "transformers quantises plain nn.Linear only, and its FalconLinear would stay in 16 bit",
}


@dataclass(frozen=True, slots=True)
class Qlora:
    """NF4 base weights (0.5 B per element + scales), 16-bit rest, adapters as LoRA's, one weight dequantised at a time.

    Source:
        Dettmers et al. 2023 §3 (arXiv:2305.14314); bitsandbytes 0.50.2 nn.Linear4bit; bnb_4bit_quant_storage in the
        training precision, so that ZeRO-3 can shard it. Memory model §W3, §W4.
    """

    adapters: Adapters = field(default_factory=Adapters)
    double_quantization: bool = True
    rank = 10
    name = "qlora"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"method": "qlora"}

    def accepts(self, setting: Setting) -> str | None:
        """Some weight must be an nn.Linear."""
        if not quantized_tensors(setting.model).numels:
            return f"{setting.model.name} has no nn.Linear in its blocks, so there is nothing to quantise"
        reason = UNFIT.get(setting.model.family)
        return f"{setting.model.name}: {reason}" if reason else None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Quantise and freeze the base, train the adapters."""
        model = setting.model
        changed = replace(
            ledger,
            trainable=trained_tensors(model, self.adapters),
            frozen=unquantized_tensors(model),
            zero_init=False,  # bitsandbytes quantises whole tensors on their way to the GPU
            computation=replace(ledger.computation, adapters=self.adapters, quantized=True),
        )
        quantized = quantized_tensors(model)
        scales = sum(scales_bytes(n, double_quantization=self.double_quantization) * c for n, c in quantized.histogram)
        buffer = ledger.computation.precision.bytes * largest_linear(model)
        return changed.plus(
            Entry(
                Item.QUANTIZED,
                Device.GPU,
                quantized.total // 2,
                ALWAYS,
                f"0.5 B x {quantized.total:,} elements; {NOT_QUANTIZED}",
            ),
            Entry(
                Item.SCALES, Device.GPU, scales, ALWAYS, f"scales of {len(quantized.numels):,} tensors, block {BLOCK}"
            ),
            Entry(
                Item.DEQUANTIZED,
                Device.GPU,
                buffer,
                (Phase.FORWARD, *BACKWARDS),
                "largest linear weight in the training precision",
            ),
        )
