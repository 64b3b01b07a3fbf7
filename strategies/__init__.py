"""Memory transforms, one decision per file; `trainplan.strategies.space` alone knows all of them."""
