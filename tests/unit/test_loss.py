"""strategies/loss.py: logits for one chunk of tokens at a time."""

from __future__ import annotations

from trainplan.planner.evaluate import evaluate
from trainplan.planner.ledger import Item
from trainplan.planner.transform import Stack
from trainplan.strategies.loss import ChunkedLoss
from trainplan.strategies.zero import Zero

from ..tiny import llama, setting

MODEL = llama(vocab=65536)


def logits(*, chunk: int, seq_len: int) -> int:
    """Bytes of the line."""
    stack = Stack.of(Zero(0), ChunkedLoss(chunk)) if chunk else Stack.of(Zero(0))
    return evaluate(stack, setting(MODEL, seq_len=seq_len)).bytes_of(Item.LOGITS)


def test_the_chunk_bounds_the_logits() -> None:
    """More tokens add the hidden states they need anyway, not vocabulary-wide rows."""
    grown = logits(chunk=256, seq_len=4096) - logits(chunk=256, seq_len=2048)
    assert grown <= 2048 * 256 * 8  # at most a few copies of the hidden states
    assert logits(chunk=0, seq_len=4096) - logits(chunk=0, seq_len=2048) >= 2048 * 65536 * 4


def test_a_smaller_chunk_needs_less() -> None:
    """The part that depends on the vocabulary follows the chunk."""
    assert logits(chunk=256, seq_len=2048) < logits(chunk=1024, seq_len=2048) < logits(chunk=0, seq_len=2048)
