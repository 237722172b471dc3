"""Hostile or mistyped command lines and files give one line each, and exit code 1."""

import json
import sys
import tempfile

import pytest
import tensorflow as tf

from common.scripts import app
from mnist_challenge.model import build_model
from tests.helpers import ROOT, run

# Runs each command line of a file in a fork of one process, so that the project is imported once.
# What it prints goes to NUMBER.out and NUMBER.err.
DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from common.scripts import app, attack_file, compare, evaluate, export_model
from mnist_challenge.challenge import MNIST
SCRIPTS = {
    "eval.py": (evaluate.evaluate, evaluate.define_eval_flags),
    "pgd_attack.py": (attack_file.pgd_attack, attack_file.define_attack_file_flags),
    "run_attack.py": (attack_file.run_attack, None),
    "compare.py": (compare.compare, compare.define_flags),
    "export_model.py": (export_model.export_model, export_model.define_flags),
}
for number, (script, *words) in enumerate(json.load(open(sys.argv[2]))):
    child = os.fork()
    if not child:
        for handle, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT, 0o644), handle)
        sys.argv, code = [script, *words], 99
        main, define_flags = SCRIPTS[script]
        try:
            app.run(main, MNIST, define_flags)
        except SystemExit as error:
            code = error.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_all(command_lines, place, **options):
    """Exit code, stdout and stderr of each."""
    with tempfile.NamedTemporaryFile("w") as file:
        json.dump(command_lines, file)
        file.flush()
        codes = [
            int(line) for line in run("-c", DRIVER, ROOT, file.name, cwd=place, **options).split()
        ]
    assert len(codes) == len(command_lines)
    found = []
    for number, code in enumerate(codes):
        texts = [place / f"{number}.{name}" for name in ("out", "err")]
        found.append((code, *(path.read_text() for path in texts)))
        for path in texts:
            path.unlink()
    return found


FORGED = "x\nnatural: 100.00%\nerror: none\x1b[2J\x1b]0;owned\x07\r\u202e"
DEEP = "[" * 10**5
HOSTILE = {
    # Paths.
    "long": (("eval.py", "--model_dir=" + "x" * 10**4), "--model_dir: cannot read xxx"),
    "long name": (("eval.py", "--model_dir=" + "x" * 300), "--model_dir: cannot read xxx"),
    "long result": (("eval.py", "--output_json=" + "x" * 10**4), "--output_json: cannot write"),
    "long state": (("eval.py", "--state_dir=" + "x" * 10**4), "--state_dir: cannot write"),
    "long source": (("eval.py", "--source=" + "x" * 10**4), "--source: cannot read"),
    "long data": (
        ("eval.py", "--data_dir=" + "x" * 10**4),
        "expected data_dir to be an existing directory",
    ),
    "long config": (("eval.py", "--config=" + "x" * 10**4), "cannot read xxx"),
    "long attack file": (("run_attack.py", "--store_adv_path=" + "x" * 10**4), "cannot read the"),
    "empty": (("eval.py", "--model_dir="), "flag --model_dir=: expected a path, got ''"),
    "empty result": (("eval.py", "--output_json="), "flag --output_json=: expected a path"),
    "empty data": (("eval.py", "--data_dir="), "flag --data_dir=: expected a path"),
    "not UTF-8": (("eval.py", "--model_dir=\udcff\udcfe"), r"got '\udcff\udcfe'"),
    "forged": (("eval.py", f"--model_dir={FORGED}"), r"got x natural: 100.00% error: none\x1b[2J"),
    "forged result": (
        ("eval.py", f"--output_json=no/{FORGED}"),
        "--output_json: cannot write no/x",
    ),
    "forged config": (("eval.py", f"--config={FORGED}"), "cannot read x natural"),
    "no such user": (
        ("eval.py", "--model_dir=~nobody_at_all"),
        "whose home directory is not known",
    ),
    "below a file": (("eval.py", "--model_dir=file/x"), "which does not exist"),
    # Flags.
    "unknown flag": (("eval.py", f"--{FORGED}=1"), "Unknown command line flag 'x natural"),
    "unknown flag, not UTF-8": (("eval.py", "--\udcff"), r"Unknown command line flag '\udcff'"),
    "no value": (("eval.py", "--model_dir"), "Missing value for flag --model_dir"),
    "words": (("eval.py", FORGED), "expected flags only, got 'x"),
    "no flag file": (("eval.py", f"--flagfile={FORGED}"), "Unable to open flagfile"),
    "bool": (("eval.py", f"--random_start={FORGED}"), "flag --random_start=x natural"),
    "enum": (("eval.py", f"--norm={FORGED}"), "flag --norm=x natural"),
    "attack": (("eval.py", f"--attack={FORGED}"), "--attack: expected pgd"),
    "suite": (("eval.py", f"--suite={FORGED}"), "--suite: expected one of paper"),
    "preset": (("eval.py", f"--preset={FORGED}"), "--preset: expected one of paper_fgsm"),
    "rows": (("compare.py", "--rows=" + "x" * 10**5), "--rows: expected some of"),
    "list": (("export_model.py", f"--rows={FORGED}"), "--rows"),
    # Numbers.
    "steps": (("eval.py", "--num_steps=2147483648"), "num_steps: expected an integer of 0 or more"),
    "batch": (("eval.py", "--eval_batch_size=1099511627776"), "eval_batch_size: expected an"),
    "size": (("eval.py", "--scale=1000000"), "scale: expected an integer of 1 or more"),
    "digits": (("eval.py", "--num_steps=" + "9" * 10**4), "num_steps: expected an integer"),
    "nan": (("eval.py", "--kappa=nan"), "kappa: expected a number"),
    "deep": (
        ("eval.py", f"--step_size_schedule={DEEP}"),
        "step_size_schedule: expected [[0, rate]",
    ),
    "escape": (("eval.py", f"--step_size={FORGED}"), r"step_size: expected a number from -3.4e+38"),
    # Config files.
    "deep file": (("eval.py", "--config=deep.json"), "deep.json is not JSON that can be read"),
    "control codes": (("eval.py", "--config=codes.json"), "unknown setting"),
    "NUL": (
        ("eval.py", "--config=nul.json"),
        r"nul.json: model_dir: expected a path, got 'a\x00b'",
    ),
    "directory": (("eval.py", "--config=."), "cannot read .: Is a directory"),
    "binary": (("eval.py", "--config=binary.json"), "binary.json is not JSON"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    (place / "file").touch()
    (place / "deep.json").write_text('{"num_steps": ' + "[" * 10**6)
    (place / "codes.json").write_text(json.dumps({FORGED: 1}))
    (place / "nul.json").write_text(json.dumps({"model_dir": "a\0b"}))
    (place / "binary.json").write_bytes(bytes(range(256)))
    return place


def test_hostile_command_lines_are_one_line_each(place):
    before = sorted(place.iterdir())
    found = run_all([words for words, _ in HOSTILE.values()], place)
    for name, (code, out, err), (_, expected) in zip(HOSTILE, found, HOSTILE.values()):
        assert code == 1, (name, out, err)
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), (name, err)
        assert err.rstrip("\n").isprintable() and len(err) < 2100, name
        assert expected in lines[0], (name, err)
        # What was printed before is the program's own.
        assert "100.00%" not in out and out.replace("\n", "").isprintable(), (name, out)
    assert sorted(place.iterdir()) == before


def test_a_flag_given_twice_counts_as_it_was_given_last(place):
    ((code, out, _),) = run_all(
        [
            (
                *("eval.py", "--num_steps=7", "--num_steps=0", "--num_eval_examples=2"),
                "--output_json=result.json",
            )
        ],
        place,
    )
    assert code == 0 and "num_steps 0" in out
    (place / "result.json").unlink()


def test_a_path_of_control_codes_cannot_pass_for_the_programs_lines(tmp_path, monkeypatch):
    """Where it is a true one; under a keras.json that another project wants."""
    build_model(scale=1, seed=1).save(tmp_path / f"{FORGED}.keras")
    (tmp_path / "keras.json").write_text(
        json.dumps({"floatx": "float64", "image_data_format": "channels_first"})
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    few = (f"--model_dir={FORGED}.keras", "--num_eval_examples=10")
    adv = f"--store_adv_path=adv-{FORGED}"
    found = run_all(
        [
            ("eval.py", f"--output_json=json-{FORGED}", "--num_steps=1", *few),
            ("pgd_attack.py", adv, "--num_steps=1", *few),
            ("run_attack.py", adv, *few),
            ("compare.py", "--rows=natural", f"--output_json=rows-{FORGED}", *few),
        ],
        tmp_path,
        afresh=True,
    )
    shown = r"x natural: 100.00% error: none\x1b[2J\x1b]0;owned\x07 \u202e"
    for code, out, err in found:
        assert code == 0, err
        assert (out + err.replace("\r", "")).replace("\n", "").isprintable()
        assert "error: none" not in (out + err).splitlines()
    assert f"model: {shown}.keras" in found[0][1].splitlines()
    assert f"Examples stored at adv-{shown}, their description at adv-{shown}.json" in found[1][1]
    assert f"written to rows-{shown}" in found[3][1].splitlines()


def test_a_note_of_control_codes_cannot_pass_for_the_programs_lines(tmp_path):
    few = ("--num_eval_examples=10", "--num_steps=0", "--model_dir=natural")
    assert run_all([("pgd_attack.py", *few)], tmp_path)[0][0] == 0
    note = json.loads((tmp_path / "attack.npy.json").read_text())
    (tmp_path / "attack.npy.json").write_text(
        json.dumps({**note, "model": FORGED, "model_digest": "0"})
    )
    ((code, out, _),) = run_all([("run_attack.py", *few)], tmp_path)
    assert code == 0 and out.replace("\n", "").isprintable()
    assert "note: these examples were made on another model, x natural: 100.00% error" in out


# Failures that only the last handler catches.

FAILURES = {
    "disk": (OSError(28, "No space left on device", "a\nb"), "a b: No space left on device"),
    "memory": (MemoryError(), "MemoryError"),
    "array": (MemoryError("Unable to allocate 7. TiB"), "MemoryError: Unable to allocate 7. TiB"),
    "recursion": (RecursionError("maximum depth\x1b"), r"RecursionError: maximum depth\x1b"),
    "tensor": (
        tf.errors.ResourceExhaustedError(None, None, "OOM when\nallocating"),
        "ResourceExhaustedError: OOM when allocating",
    ),
    "damage": (tf.errors.DataLossError(None, None, "bad block"), "DataLossError: bad block"),
}


@pytest.mark.parametrize("error, expected", FAILURES.values(), ids=FAILURES)
def test_failures_of_disk_and_memory_are_one_line(error, expected, monkeypatch, capsys):
    def fails(words):
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        app.run_words(fails)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_other_errors_are_faults_of_the_program_and_keep_their_traceback(monkeypatch):
    def fails(words):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(ZeroDivisionError):
        app.run_words(fails)


@pytest.mark.slow  # TensorFlow waits ten seconds for memory
def test_a_tensor_that_no_memory_holds_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit):
        app.run_words(lambda words: tf.zeros(2**50))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ResourceExhaustedError: ")
