"""strategies/attention.py: which kernel runs."""

from __future__ import annotations

from trainplan.planner.computation import AttentionImplementation as Kind
from trainplan.planner.evaluate import evaluate
from trainplan.planner.ledger import Item
from trainplan.planner.models import load_model
from trainplan.planner.transform import Stack
from trainplan.strategies.attention import Attention
from trainplan.strategies.zero import Zero

from ..tiny import setting


def saved(kind: Kind, seq_len: int) -> int:
    """Bytes saved for backward."""
    return evaluate(Stack.of(Attention(kind), Zero(0)), setting(seq_len=seq_len)).bytes_of(Item.SAVED)


def test_flash_grows_with_tokens_eager_with_their_square() -> None:
    """Doubling the sequence doubles what flash keeps; eager adds heads x s x s scores in every layer."""
    assert saved(Kind.FLASH, 1024) < 2.01 * saved(Kind.FLASH, 512)
    gap = [saved(Kind.EAGER, s) - saved(Kind.FLASH, s) for s in (512, 1024)]
    assert gap[1] > 3.5 * gap[0]
    assert gap[0] >= 4 * 8 * 512 * 512 * 2


def test_soft_caps_need_eager() -> None:
    """Gemma-2 caps its scores: flash is refused, eager is not."""
    at = setting(load_model("gemma-2-2b"))
    assert "caps its scores" in str(Attention(Kind.FLASH).accepts(at))
    assert Attention(Kind.EAGER).accepts(at) is None
    assert Attention(Kind.FLASH).accepts(setting()) is None
