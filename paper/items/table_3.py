"""Table 3: FGSM examples between six CIFAR-10 networks."""

import functools

from paper import transfer
from paper.item import Item

ROW = "paper_fgsm"

ITEM = Item(
    name="table_3",
    title="Table 3: transfer of FGSM between CIFAR-10 networks",
    question="RQ3",
    claim="Examples from wider networks, and from networks trained on natural images, hardly harm "
    "robust networks; examples from other robust networks harm them most.",
    minutes=15,
    settings={"num_images": 1000, "seed": 0},
    sample={"num_images": 2},
    parts=functools.partial(transfer.parts, ROW),
    table=functools.partial(transfer.table, "table_3", ROW),
    rule=transfer.RULE,
    verdict=functools.partial(transfer.verdict, "table_3", ROW),
)
