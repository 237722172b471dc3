"""One short file for each figure or table of the paper, and the numbers they gave here."""
