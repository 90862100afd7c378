"""What the processes of one training tell each other, in three of torchrun's over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TALK = """
import sys
import torch
from nlrn.processes import joined

with joined() as processes:
    rank = processes.rank
    assert processes.world == 3 and processes.leads == (rank == 0)
    assert processes.agree(10 + rank) == 10
    assert processes.sum(torch.tensor([1.0, rank])).tolist() == [3.0, 3.0]

    wide = torch.full((2, 3, 4, 4), float(rank)).to(memory_format=torch.channels_last)
    wide[:, 1] += 3
    short = torch.tensor([0.5]) * rank
    processes.average([wide, short])
    assert torch.equal(wide[:, 1], torch.full((2, 4, 4), 4.0)) and torch.equal(wide[:, 2], torch.ones(2, 4, 4))
    assert short.item() == 0.5

    own = torch.full((2, 3, 4, 4), float(rank)).to(memory_format=torch.channels_last)
    own[:, 2] = 7 - rank
    count = torch.tensor(5 + rank)
    processes.follow([own, count])
    assert torch.equal(own[:, :2], torch.zeros(2, 2, 4, 4)) and torch.equal(own[:, 2], torch.full((2, 4, 4), 7.0))
    assert own.is_contiguous(memory_format=torch.channels_last) and count.item() == 5
    processes.wait()
sys.stdout.write(str(rank))
"""


def test_processes_agree_sum_average_and_follow(tmp_path: Path) -> None:
    (script := tmp_path / "talk.py").write_text(TALK)
    source = Path(__file__).resolve().parents[1] / "src"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")
    done = subprocess.run(
        [*launcher, str(script)],
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout) == ["0", "1", "2"]
