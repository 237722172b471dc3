"""The tables of every attack on every shipped network, made from the networks' cards."""

from cifar10_challenge.challenge import CIFAR10
from common import cards
from mnist_challenge.challenge import MNIST

# The shipped models, in the order of the columns.
MNIST_MODELS = ("adv_trained", "adv_trained_b", "fgsm_trained", "natural")
CIFAR10_MODELS = ("simple_adv_trained", "simple_fgsm_trained", "simple_natural")


def mnist_table():
    """The table of attacks on the shipped MNIST networks, as Markdown."""
    return results_table(MNIST, MNIST_MODELS)


def cifar10_table():
    """The table of attacks on the shipped CIFAR-10 networks, as Markdown."""
    return results_table(CIFAR10, CIFAR10_MODELS)


def results_table(challenge, names):
    """A table of the cards' results, as Markdown; the first card is the robust network's.

    The columns of paper and leaderboard are of robust networks, too.
    """
    own = [cards.read(challenge, name) for name in names]
    robust = own[0]["training"]["config"]
    rows = {}
    for card in own:
        for entry in card["results"]:
            rows.setdefault((entry["row"], entry["source"]), entry)
    links = [f"[{name}](../{challenge.directory.name}/models/{name}/README.md)" for name in names]
    lines = [
        f"| attack | paper | leaderboard | {' | '.join(links)} |",
        "|---" * (3 + len(names)) + "|",
    ]
    for (row, source), entry in rows.items():
        cells = [
            cards.full_title(entry),
            str(cards.paper_accuracy(challenge, robust, entry)),
            str(cards.leaderboard_accuracy(challenge, robust, entry)),
            *(shown_accuracy(cards.find(card, row, source)) for card in own),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_accuracy(entry):
    """Returns a card's accuracy as a cell, with the number of images if it is not 10,000."""
    if entry is None:
        return ""
    count = entry["num_examples"]
    return f"{entry['accuracy']:.2f}" + (f" ({count:,})" if count < 10000 else "")
