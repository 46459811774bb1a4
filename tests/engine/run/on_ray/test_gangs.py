"""Where the processes of a training have room: on one node or several, whole GPUs or shares of them."""

from __future__ import annotations

import pytest

from caiflow.engine.errors import ClusterError
from caiflow.engine.run.on_ray.nodes import Node, places, refuse_impossible

NODES = [
    Node(name, name, 8, gpus, labels={"card": card}) for name, gpus, card in (("a", 3, "old"), ("b", 3, "new"), ("c", 1, "new"))
]


@pytest.mark.parametrize(("gpus", "most"), [(1, 7), (2, 2), (3, 2), (4, 0), (0.5, 14), (0.3, 21)])
def test_each_process_has_its_gpus_on_one_node_and_a_share_on_one_gpu(gpus: float, most: int) -> None:
    assert places(NODES, gpus) == most


def test_a_training_on_one_gpu_nodes_may_have_as_many_workers_as_there_are_nodes() -> None:
    one_gpu_nodes = [Node(name, name, 8, 1) for name in "ab"]
    refuse_impossible(one_gpu_nodes, 1, 2, "sft")
    with pytest.raises(ClusterError, match="sft wants 3 GPUs, the cluster has 2"):
        refuse_impossible(one_gpu_nodes, 1, 3, "sft")


def test_gpus_that_are_enough_together_and_on_no_node_are_refused() -> None:
    with pytest.raises(ClusterError, match="sft wants 2 GPUs on one node 3 times; the nodes have room for it 2 times"):
        refuse_impossible(NODES, 2, 3, "sft")


def test_workers_that_only_some_nodes_may_have_are_counted_there() -> None:
    refuse_impossible(NODES, 1, 4, "sft", {"card": "new"})
    with pytest.raises(ClusterError, match="sft, on nodes with card: new, wants 5 GPUs, the cluster has 4"):
        refuse_impossible(NODES, 1, 5, "sft", {"card": "new"})
