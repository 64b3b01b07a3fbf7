"""What a plan is and how one is found; knows the shape of a strategy, never the list of them."""
