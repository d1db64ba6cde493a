from __future__ import annotations

from typing import Any

import pytest

from sr_runner.checkpoint.state import Origin, RunState


def state(**others: Any) -> RunState:
    return RunState(
        step=7, networks={"d": {}}, learners={"model": {"lr": 1.0}}, random={"torch": 1}, window={"steps": 2},
        evaluated_at=6, best={"step": 6.0}, scores=[{"psnr": 1.0}], bicubic=[{"psnr": 2.0}], final={"step": 0},
        environment={"torch": "2"}, **others,
    )  # fmt: skip


@pytest.mark.parametrize("peers", [(), [{"torch": 2}, {"torch": 3}]])
@pytest.mark.parametrize("job", [None, "slurm 1"])
def test_what_a_run_is_comes_back_as_it_was_and_names_peers_and_a_job_only_where_it_has_some(
    peers: list[dict[str, int]], job: str | None
) -> None:
    origin = Origin(facts={"seed": 1}, attempt="a/b", request={"overrides": []}, job=job, tracker={"run_id": "1"})
    tree = state(others=peers, origin=origin).tree()
    assert RunState.of(tree) == state(others=peers, origin=origin)
    assert ("others" in tree, "job" in tree) == (bool(peers), job is not None)
