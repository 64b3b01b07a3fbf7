"""Scripts that a plan comes with: copied beside it as they stand, they import nothing of trainplan."""
