"""The command line: options in, one configuration or one list of problems out."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from federation import launch
from federation.command_line import Options, parse, resolve_options
from federation.errors import ConfigError

PLAIN = "tests.config_parts:PlainLearner"
BARE = ["--set", f"components.learner={PLAIN}", "learner_config={}"]


def problems(*arguments):
    with pytest.raises(ConfigError) as caught:
        resolve_options(parse(arguments))
    return caught.value.problems


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\nnum_clients: 4\nmode: parallel\ntrainer_config: {max_rounds: 3}\n")
    return str(path)


def test_all_options():
    assert parse(["--config", "c.yaml", "--mode", "serial", "--num_clients", "5", "--set", "a=1", "b.c=2", "--set",
        "d=-3",
                  "--seed", "9", "--output_dir", "out", "--resume", "x.h5", "--dry_run", "--quiet"]) == Options(
        config="c.yaml", mode="serial", num_clients="5", set=("a=1", "b.c=2", "d=-3"), seed="9", output_dir="out",
            resume="x.h5",
        dry_run=True, quiet=True)
    assert parse([]) == Options()


@pytest.mark.parametrize(("words", "expected"), [
    (["--num-clients", "5"], Options(num_clients="5")), (["--num-clients=5"], Options(num_clients="5")),
    (["--output-dir", "a-b"], Options(output_dir="a-b")), (["--output-dir=a-b=c"], Options(output_dir="a-b=c")),
    (["--dry-run"], Options(dry_run=True)), (["--resume"], Options(resume="auto")),
    (["--resume", "auto"], Options(resume="auto")),
    (["--resume", "--dry-run"], Options(resume="auto", dry_run=True)), (["--resume=a.h5"], Options(resume="a.h5")),
    (["--set=a-b=1"], Options(set=("a-b=1",))), (["--seed", "-1"], Options(seed="-1")),
])
def test_spellings(words, expected):
    assert parse(words) == expected


@pytest.mark.parametrize(("words", "expected"), [
    (["--num_client", "5"], "--num_client: unknown option; did you mean --num_clients?"),
    (["--confg=c.yaml"], "--confg: unknown option; did you mean --config?"),
    (["--num", "5"], "--num: unknown option"),
    (["--conf", "c.yaml"], "--conf: unknown option; did you mean --config?"),
    (["-c", "c.yaml"], "-c: unknown option"),
    (["c.yaml"], "'c.yaml': all options have names; did you mean --config c.yaml?"),
    (["--config"], "--config: expected one argument"),
    (["--set"], "--set: expected at least one argument"),
    (["--seed", "1", "--seed", "2"], "--seed: given twice"),
    (["--dry_run=yes"], "--dry_run: ignored explicit argument 'yes'"),
    (["--set", "seed=1", "--set", "seed=2"], "--set: seed: given twice"),
])
def test_usage_errors_name_the_nearest_option(words, expected):
    found = problems(*words) if words[-1] == "--set" else problems(*words, *BARE)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_all_unknown_options_are_listed_without_their_values():
    """S-SEC-05: the word behind an unknown option may be a secret."""
    found = problems("--tokn", "SECRET123", "--sed=SECRET123", "--api-key", "SECRET123")
    assert [problem.partition(":")[0] for problem in found] == ["--tokn", "--sed", "--api_key"]
    assert "SECRET123" not in "".join(found)


def test_precedence(file):
    """Option > --set > file > default."""
    config = resolve_options(parse(["--config", file, "--set", "seed=2", "trainer_config.min_clients=2",
        "num_clients=5", "--seed", "3"]))
    assert (config.seed, config.num_clients, config.mode) == (3, 5, "parallel")
    assert (config.trainer_config.max_rounds, config.trainer_config.min_clients) == (3, 2)
    assert config.output_dir == "runs/mine"
    config = resolve_options(parse(["--config", file, "--mode", "serial", "--num-clients", "7", "--output_dir", "010"]))
    assert (config.mode, config.num_clients, config.output_dir) == ("serial", 7, "010")


@pytest.mark.parametrize(("words", "expected"), [
    (["--mode", "paralel"],
    "--mode: mode: 'paralel' is not known: wanted is one of auto, serial, parallel, mpi, server, "
                            "client, distributed; did you mean parallel?"),
    (["--num_clients", "08"], "--num_clients: num_clients: '08' has a leading zero"),
    (["--num_clients", "0"], "--num_clients: num_clients: '0' is out of range: wanted is an integer, at least 1"),
    (["--num_clients", "1_0"], "--num_clients: num_clients: '1_0' has an underscore"),
    (["--num_clients", ""], "--num_clients: num_clients: ''"),
    (["--seed", "true"], "--seed: seed: 'true' is a truth value"),
    (["--seed", "1.0"], "--seed: seed: '1.0' is not an integer; write 1"),
    (["--output_dir", ""], "--output_dir: output_dir: '' is empty"),
    (["--set", "seed"], "--set: seed: is not of the form dotted.key=value"),
])
def test_values_are_checked_as_those_of_a_file(words, expected):
    found = problems(*words, *BARE)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_file_set_and_options_share_one_list(tmp_path):
    """S-CONF-05: every problem of every source, at once."""
    path = tmp_path / "bad.yaml"
    path.write_text("seed: 010\nsede: 1\n")
    found = problems("--config", str(path), "--set", "threads=0", "--mode", "x")
    assert [problem.split(": ")[0].rpartition("/")[2] for problem in found] == ["bad.yaml:1", "bad.yaml:2", "--set",
        "--mode"]


def test_the_built_in_example_needs_no_file():
    config = resolve_options(parse(BARE))
    assert (config.data.dataset, config.components.model, config.num_clients) == ("digits", "model.torch.mlp", 10)
    assert config.output_dir == "runs/example"


def test_help_loads_nothing_heavy():
    """S-HPC-03: --help prints and exits with 0, with neither MPI nor torch, also inside an allocation."""
    code = """
        import sys
        from federation.command_line import parse
        try:
            parse(["--help"])
        except SystemExit as leaving:
            assert leaving.code == 0
            heavy = [name for name in ("torch", "mpi4py", "numpy", "sklearn", "h5py") if name in sys.modules]
            assert not heavy, heavy
        else:
            raise AssertionError("--help went on")
    """
    environment = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True,
        text=True, check=True,
                          timeout=60)
    for word in ("--num_clients", "--set KEY=VALUE", "--resume", "trainer_config.max_rounds: 20", "exit status", "75"):
        assert word in done.stdout
    assert done.stderr == ""


def test_memory_that_is_not_there_is_said_in_a_line(capsys):
    """As for num_clients: 2000000000 with allow_empty."""
    assert launch.report(MemoryError("Unable to allocate 7 TiB")) == launch.FAILED
    assert capsys.readouterr().err == "out of memory: Unable to allocate 7 TiB\n"
