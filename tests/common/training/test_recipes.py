import pytest

from cifar10_challenge.challenge import CIFAR10
from common.config import make_config, read_json
from mnist_challenge.challenge import MNIST

RECIPES = [
    (challenge, path)
    for challenge in (MNIST, CIFAR10)
    for path in sorted(challenge.directory.glob("config_*.json"))
]


@pytest.mark.parametrize(("challenge", "path"), RECIPES, ids=lambda x: getattr(x, "name", None))
def test_each_recipe_trains_against_an_attack_that_reaches_the_balls_surface(challenge, path):
    recipe = make_config(challenge, (path, read_json(path)))
    assert (recipe.adversary, recipe.random_start) == ("pgd", True)
    assert recipe.attack_schedule[-1][0] < recipe.max_num_training_steps
    for _, num_steps, step_size in recipe.attack_schedule:
        assert num_steps * step_size >= recipe.epsilon
    # The rate's last point is the training's end.
    assert recipe.step_size_schedule[-1][0] == recipe.max_num_training_steps
    assert recipe.num_validation_steps < recipe.max_num_training_steps


def test_there_are_recipes_for_a_first_try_and_for_a_cpu():
    names = {(challenge.name, path.name) for challenge, path in RECIPES}
    assert names == {
        ("MNIST", "config_5_minutes.json"),
        ("MNIST", "config_cpu.json"),
        ("MNIST", "config_long.json"),
        ("CIFAR-10", "config_cpu.json"),
        ("CIFAR-10", "config_long.json"),
    }
