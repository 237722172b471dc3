"""One short file for each figure or table of the paper, and our results."""
