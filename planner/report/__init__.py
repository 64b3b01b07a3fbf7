"""From a plan to text that people read."""
