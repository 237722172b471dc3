"""Table 4: PGD of 7 steps examples between six CIFAR-10 networks."""

from paper import transfer

ITEM = transfer.item(number=4, attack="PGD", row="paper_pgd_7", minutes=60)
