"""Data-parallel calibration: several processes decide what one with all samples decides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tamp_modifier.calibration.distributed import agree, all_of, any_of, gather, partition
from tests.distributed_worker import CASES, run_case

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what two processes, started by torchrun, have left of every case."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.distributed_worker", folder, *CASES, "bad_sample"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_prune_as_one_with_all_samples(
    two_processes: Path, case: str, tmp_path: Path
) -> None:
    run_case(case, tmp_path)
    alone = torch.load(tmp_path / f"{case}.0.pt")
    first, second = (torch.load(two_processes / f"{case}.{rank}.pt") for rank in (0, 1))
    assert alone.keys() == first.keys() == second.keys()
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        if case == "sparsegpt":
            # The Hessian is fp32, and its sum depends on the order: weights agree to rounding, and
            # so does what is pruned but for ties.
            assert torch.allclose(first[name], weight, atol=1e-4), name
            assert ((first[name] == 0) != (weight == 0)).double().mean() < 0.005, name
        else:
            assert torch.equal(first[name], weight), name
    check_reports(two_processes / f"{case}.0.json", tmp_path / f"{case}.0.json")


def check_reports(merged_path: Path, alone_path: Path) -> None:
    """The first of several processes reports the samples of all."""
    alone = json.loads(alone_path.read_text())
    merged = json.loads(merged_path.read_text())
    assert merged["samples"] == alone["samples"] == 3
    assert merged["tokens"] == alone["tokens"]
    assert merged["token_types"] == alone["token_types"]
    for name, linear in alone["linears"].items():
        found = merged["linears"][name]
        assert found["selected"] == linear["selected"], name
        assert found["tokens_seen"] == linear["tokens_seen"], name
        wanted = linear["importance"]
        assert found["importance"] == (wanted and pytest.approx(wanted, rel=1e-12)), name
        assert found["similarities"] == pytest.approx(linear["similarities"], rel=1e-12), name


@pytest.mark.slow
def test_only_the_first_process_writes(two_processes: Path) -> None:
    for case in CASES:
        assert not (two_processes / f"{case}.1.json").exists()
        assert (two_processes / case / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_bad_sample_of_one_process_stops_all_and_nothing_is_pruned(two_processes: Path) -> None:
    for rank in (0, 1):
        told = (two_processes / f"bad.{rank}.txt").read_text()
        assert told.startswith("unchanged=True") and "not finite" in told, told


def test_one_process_keeps_all_to_itself() -> None:
    assert partition([3, 1, 2]) == [3, 1, 2]
    assert gather("a") == ["a"]
    assert any_of("ab") == all_of("ab") == {"a", "b"}
    assert agree(lambda: 5) == 5
    with pytest.raises(KeyError):
        agree(lambda: {}["missing"])


def test_shares_are_the_samples_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from tamp_modifier.calibration import distributed

    for ranks, count in [(1, 1), (3, 3), (4, 10), (7, 128)]:
        monkeypatch.setattr(distributed, "ranks", lambda ranks=ranks: ranks)
        shares = []
        for number in range(ranks):
            monkeypatch.setattr(distributed, "rank", lambda number=number: number)
            shares.append(partition(range(count)))
        assert sum(shares, []) == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="6 calibration samples cannot feed 7 processes"):
        partition(range(6))
