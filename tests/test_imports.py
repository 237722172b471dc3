"""Who may import whom, as CONTRIBUTING.md says."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# From the ground up: a module imports those of its own line and of the lines above it here.
STOREYS = (
    "errors messages files json_shapes interruption provenance startup challenge plain_pickle"
    " philox rounded_weights",
    "attack",
    "config",
    "data checkpoint_files checkpoints original_checkpoints fetching submission",
    "evaluation",
    "training",
    "cards leaderboard robust",
    "scripts",
)
STOREY_OF = {room: number for number, rooms in enumerate(STOREYS) for room in rooms.split()}
MODULES = [
    path.relative_to(ROOT)
    for folder in (
        "common",
        "mnist_challenge",
        "cifar10_challenge",
        "paper",
        "benchmarks",
        "accelerator",
    )
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "samples" not in path.parts
]


def imports_of(path):
    """(module, name or None) of every import in a file, functions' own included."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a name comes from"
            yield from ((node.module, alias.name) for alias in node.names)


def room_of(module, name):
    """The file or folder of common that an import reaches; None for common itself."""
    parts = [*module.split("."), name][1:]
    return parts[0] if parts[0] in STOREY_OF else None


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] == "common"], ids=str)
def test_a_module_of_common_imports_its_own_storey_and_those_below(path):
    if path.parts[1:] == ("__init__.py",):
        return
    own = path.parts[1].removesuffix(".py")
    for module, name in imports_of(path):
        top = module.split(".")[0]
        assert top not in (
            "mnist_challenge",
            "cifar10_challenge",
            "paper",
            "benchmarks",
            "accelerator",
        ), module
        if top == "common":
            room = room_of(module, name)
            assert room is not None or module == "common", (module, name)
            assert STOREY_OF[room] <= STOREY_OF[own], f"{own} imports {room}"
            if own == "config" and room == "attack":
                assert name == "check_radius", name
        if top == "absl":
            assert own == "scripts", "only scripts know flags"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_challenge_imports_no_other_challenge_and_a_network_only_keras(path):
    folder, name = path.parts[0], path.name
    others = {"mnist_challenge", "cifar10_challenge", "paper", "benchmarks", "accelerator"} - {
        folder
    }
    for module, _ in imports_of(path):
        top = module.split(".")[0]
        if folder.endswith("_challenge"):
            assert top not in others, module
            if name == "model.py":
                assert top in ("keras", "tensorflow", "common", folder), module


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] == "common"], ids=str)
def test_only_scripts_print_and_end_the_process(path):
    if path.parts[1] in ("scripts", "startup.py"):
        return
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        assert not (isinstance(node, ast.Name) and node.id == "print"), node.lineno
        is_exit = isinstance(node, ast.Attribute) and node.attr in ("exit", "_exit")
        assert not (is_exit and isinstance(node.value, ast.Name) and node.value.id in ("sys", "os"))


def test_the_papers_items_import_libraries_and_only_its_scripts_the_command_line():
    scripts = {"reproduce.py", "readme_tables.py", "challenges.py", "training_curve.py"}
    scripts |= {"adversarial_images.py", "accuracy_against_epsilon.py"}
    for path in MODULES:
        if path.parts[0] == "paper" and path.name not in scripts:
            for module, _ in imports_of(path):
                assert not module.startswith(("absl", "common.scripts")), (path, module)
                assert module != "paper.reproduce", path


def test_the_runner_of_accelerator_needs_no_tensorflow():
    """Nor does anything that it imports of the project."""
    known, new = set(), [pathlib.Path("accelerator/run.py")]
    while new:
        path = new.pop()
        known.add(path)
        for module, name in imports_of(path):
            top = module.split(".")[0]
            assert top not in ("tensorflow", "keras", "absl", "tqdm"), path
            for parts in ([*module.split("."), name or ""], module.split(".")):
                place = pathlib.Path(*parts).with_suffix(".py")
                if (ROOT / place).is_file() and place not in known:
                    new.append(place)
    assert pathlib.Path("common/philox.py") in known
