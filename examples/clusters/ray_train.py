"""Ray: Ray Train places the ranks of one job on the machines of a Ray cluster, and starts them again when one is lost.

pip install lora-clip 'ray[train]'
RANKS=8 GPUS=1 python examples/clusters/ray_train.py data=shards data.shards=/shared/shards output_dir=/shared/emb

RANKS is how many (2), GPUS how many each has (0). The output lies on storage that all machines see.
How far it was tried: docs/clusters.md
"""

import os
import socket
import subprocess
import sys

import ray.train
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def meeting_place() -> list:
    """Where the ranks of the job meet: a free port of rank 0's machine, which all ranks learn over Ray's own group."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        place = [socket.gethostbyname(socket.gethostname()), listener.getsockname()[1]]
    dist.broadcast_object_list(place)
    return place


def rank(given: dict) -> None:
    """A rank as torchrun would start it: a process of its own, which knows its place by the same variables."""
    here, (host, port) = ray.train.get_context(), meeting_place()
    own = here.get_local_world_size()
    variables = {
        "RANK": here.get_world_rank(), "LOCAL_RANK": here.get_local_rank(), "GROUP_RANK": here.get_node_rank(),
        "WORLD_SIZE": here.get_world_size(), "LOCAL_WORLD_SIZE": own, "GROUP_WORLD_SIZE": here.get_world_size() // own,
        "MASTER_ADDR": host, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ray",
    }  # fmt: skip
    line = [sys.executable, "-m", "lora_clip", "embed", *given["arguments"]]
    subprocess.run(line, env=os.environ | {name: str(value) for name, value in variables.items()}, check=True)


if __name__ == "__main__":
    ranks, gpus = int(os.environ.get("RANKS", "2")), int(os.environ.get("GPUS", "0"))
    each = {"CPU": 1.0} | ({"GPU": float(gpus)} if gpus else {})
    trainer = TorchTrainer(
        rank,
        train_loop_config={"arguments": sys.argv[1:]},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=gpus > 0, resources_per_worker=each),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    )
    trainer.fit()
