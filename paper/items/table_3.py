"""Table 3: FGSM examples between six CIFAR-10 networks."""

from paper import transfer

ITEM = transfer.item(number=3, attack="FGSM", row="paper_fgsm", minutes=15)
