"""How the range of a tensor is chosen from a histogram of its values; one file per method."""
