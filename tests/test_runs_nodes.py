"""Two nodes, as two launchers that know each other by a port: with disks of their own, and with one for both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from run_cli import call

from damro.eval.runs.costs import read_costs

WORKER = Path(__file__).with_name("run_worker.py")
ASKED = ["pope", "--model", "tiny", "--scenes", "12", "--split", "random", "--limit", "14", "--device", "cpu"]
FAST = [*ASKED, "--max-new-tokens", "2", "--batch-size", "2", "--method", "damro"]


class Node(NamedTuple):
    """A launcher that was started, and what it says."""

    process: subprocess.Popen[bytes]
    said: Path

    def end(self) -> int:
        """Its exit code, when it has ended."""
        return self.process.wait(timeout=120)


def start(root: Path, *outs: Path, log: str, pause: float = 0, more: Sequence[str] = ()) -> list[Node]:
    """Starts a launcher a node, each in a folder of its own, with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (root / log).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[1]), "WORKER_LOG": str(root / log)}
    environment |= {"WORKER_PAUSE": str(pause), "OMP_NUM_THREADS": "1"}
    nodes = []
    for rank, out in enumerate(outs):
        # Without a GPU accelerate starts no processes that know of each other unless told of several.
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--rdzv_backend", "static"]
        launcher += ["--num_machines", str(len(outs)), "--num_processes", str(len(outs)), "--machine_rank", str(rank)]
        launcher += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        said, place = root / log / f"said-{rank}.txt", root / f"node-{rank}"
        place.mkdir(exist_ok=True)
        command = [*launcher, str(WORKER), "run", *FAST, "--out", str(out), *more]
        with said.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment, cwd=place, stdout=file, stderr=file, start_new_session=True
            )
        nodes.append(Node(process, said))
    return nodes


def records(out: Path) -> list[dict[str, Any]]:
    lines = (out / "damro/records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def asked(root: Path, log: str) -> list[list[str]]:
    """The samples that each process recorded."""
    files = [root / log / f"damro-records-{rank}.jsonl" for rank in range(2)]
    return [file.read_text().split() if file.exists() else [] for file in files]


def kill(node: Node) -> None:
    """Ends a launcher and all that it started, as a power cut would."""
    os.killpg(node.process.pid, signal.SIGKILL)  # it leads a session of its own
    assert node.end() == -signal.SIGKILL


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of a single process."""
    out = tmp_path_factory.mktemp("alone")
    assert call("run", *FAST, "--out", str(out)) == 0
    return records(out)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_two_nodes_equal_one_process(shared: bool, alone: list[dict[str, Any]], tmp_path: Path) -> None:
    outs = [tmp_path / "both"] * 2 if shared else [Path("out")] * 2  # each relative to its launcher's own folder
    nodes = start(tmp_path, *outs, log="log", more=["--cost"])
    assert [node.end() for node in nodes] == [0, 0], [node.said.read_text() for node in nodes]
    out = tmp_path / "both" if shared else tmp_path / "node-0/out"
    assert records(out) == alone
    both = asked(tmp_path, "log")
    assert all(both) and sorted(both[0] + both[1]) == sorted(record["id"] for record in alone)
    kind = "Gathering" if shared else "MessageGathering"
    assert [(tmp_path / f"log/gathering-{rank}").read_text() for rank in range(2)] == [kind] * 2
    costs = read_costs(out / "damro")
    assert costs is not None and costs.samples == len(alone)
    assert (out / "scores.json").exists()
    if not shared:
        other = tmp_path / "node-1/out/damro"
        assert sorted(path.name for path in other.iterdir() if not path.name.startswith("costs-")) == [
            *(".lock", "run.json")
        ]


@pytest.mark.slow
def test_a_node_is_killed_and_started_again(alone: list[dict[str, Any]], tmp_path: Path) -> None:
    outs = [Path("out")] * 2
    nodes = start(tmp_path, *outs, log="first", pause=0.3)
    deadline = time.monotonic() + 120
    while not len(asked(tmp_path, "first")[1]) >= 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    kill(nodes[1])
    killed = time.monotonic()
    assert nodes[0].end() != 0
    assert time.monotonic() - killed < 90  # it waited for the other no longer than its own share took
    assert "all 2 processes of a run must live until it is done, process 0 lost another one" in (
        nodes[0].said.read_text()
    )
    first = asked(tmp_path, "first")
    on_disk = (tmp_path / "node-1/out/damro/parts/1.jsonl").read_bytes().splitlines(keepends=True)
    kept = {json.loads(line)["id"] for line in on_disk if line.endswith(b"\n")}
    assert kept and set(first[1]) <= kept
    nodes = start(tmp_path, *outs, log="second")
    assert [node.end() for node in nodes] == [0, 0], [node.said.read_text() for node in nodes]
    second = asked(tmp_path, "second")
    assert records(tmp_path / "node-0/out") == alone
    assert not kept & set(second[0] + second[1])  # read from its disk, not answered again
    whole = [*kept, *first[0], *second[0], *second[1]]
    assert sorted(whole) == sorted(record["id"] for record in alone)
    assert not (tmp_path / "node-1/out/damro/parts").exists()


@pytest.mark.slow
def test_another_run_in_the_folder_of_a_node_is_refused(tmp_path: Path) -> None:
    assert call("run", *FAST, "--out", str(tmp_path / "node-1/out"), "--seed", "7") == 0
    before = records(tmp_path / "node-1/out")
    nodes = start(tmp_path, Path("out"), Path("out"), log="log")
    assert all(node.end() for node in nodes)
    differs = "must hold the records of this very run, differs in 1: request.seed: 7 -> 42"
    assert [differs in node.said.read_text() for node in nodes] == [True, True]
    assert "process 1 is not: " in nodes[0].said.read_text()
    assert records(tmp_path / "node-1/out") == before
    assert not (tmp_path / "node-0/out/damro/records.jsonl").exists()
