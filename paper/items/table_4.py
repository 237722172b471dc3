"""Table 4: PGD of 7 steps examples between six CIFAR-10 networks."""

import functools

from paper import transfer
from paper.item import Item

ROW = "paper_pgd_7"

ITEM = Item(
    name="table_4",
    title="Table 4: transfer of PGD between CIFAR-10 networks",
    question="RQ3",
    claim="Examples from wider networks, and from networks trained on natural images, hardly harm "
    "robust networks; examples from other robust networks harm them most.",
    minutes=60,
    settings={"num_images": 1000, "seed": 0},
    sample={"num_images": 2},
    parts=functools.partial(transfer.parts, ROW),
    table=functools.partial(transfer.table, "table_4", ROW),
    rule=transfer.RULE,
    verdict=functools.partial(transfer.verdict, "table_4", ROW),
)
