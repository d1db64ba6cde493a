"""Two processes compute what one would: gradients, buffers, what they tell each other, and when they stop."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from support import wait_until
from torch import nn

from sr_runner.distributed.world import join
from sr_runner.models import EDSR, Discriminator
from sr_runner.objectives import GanObjective, Learner, PixelObjective
from sr_runner.objectives.base import Objective
from sr_runner.signals import StopSignal


def together(work: ranks.Callable[[int], None], folder: Path) -> None:
    torch.set_num_threads(1)
    assert ranks.start(work, folder).wait() == [0, 0], ranks.said(folder)


def learners(objective: Objective, model: nn.Module, **options: object) -> dict[str, Learner]:
    networks = objective.networks(model, patch_size=32)
    adam = partial(torch.optim.Adam, lr=1e-3)
    return {name: Learner(network.train(), adam, None, **options) for name, network in networks.items()}  # type: ignore[arg-type]


def weights_after_steps(objective: Objective, part: slice, steps: int = 3, **options: object) -> torch.Tensor:
    """All weights of EDSR after some steps on `part` of each batch of four."""
    torch.manual_seed(0)
    model = EDSR(scale=2, num_filters=4, num_res_blocks=1)
    trained = learners(objective, model, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        lr, hr = torch.rand(4, 3, 16, 16, generator=generator), torch.rand(4, 3, 32, 32, generator=generator)
        objective.train_step(trained, [(lr[part], hr[part])], measure=False)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"grad_clip": 0.1}, {"skip_non_finite": True}])
def test_two_processes_with_half_a_batch_each_learn_what_one_learns_from_the_whole(
    options: dict[str, object], tmp_path: Path
) -> None:
    alone = weights_after_steps(PixelObjective({"pixel": nn.L1Loss()}), slice(None), **options)

    def work(rank: int) -> None:
        world = join(StopSignal())
        mine = weights_after_steps(
            PixelObjective({"pixel": nn.L1Loss()}),
            slice(2 * rank, 2 * rank + 2),
            gradient_average=world.gradient_average,
            **options,
        )
        np.save(tmp_path / f"{rank}.npy", mine.numpy())

    together(work, tmp_path)
    first, second = (np.load(tmp_path / f"{rank}.npy") for rank in (0, 1))
    assert (first == second).all()
    np.testing.assert_allclose(first, alone.numpy(), atol=1e-6)


def test_both_networks_of_a_gan_are_the_same_in_all_processes_batch_norm_included(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        world = join(StopSignal())
        torch.manual_seed(0)
        discriminator = Discriminator(patch_size=32, num_filters=2)
        objective = GanObjective(losses={"pixel": nn.L1Loss()}, discriminator=discriminator, gradient_penalty=1.0)
        trained = learners(
            objective, EDSR(scale=2, num_filters=4, num_res_blocks=1), gradient_average=world.gradient_average
        )
        generator = torch.Generator().manual_seed(rank)
        for _ in range(2):
            lr, hr = torch.rand(2, 3, 16, 16, generator=generator), torch.rand(2, 3, 32, 32, generator=generator)
            objective.train_step(trained, [(lr, hr)], measure=False)
        states = {name: learner.network.state_dict() for name, learner in trained.items()}
        mine, other = world.all_gather(states)[rank], world.all_gather(states)[1 - rank]
        assert any("running_mean" in key for key in mine["discriminator"])
        for name, state in mine.items():
            for key, tensor in state.items():
                assert torch.equal(tensor, other[name][key]), (name, key)

    together(work, tmp_path)


def test_a_layer_that_one_process_left_out_mixes_nothing_up_and_one_that_all_left_out_has_no_gradient(
    tmp_path: Path,
) -> None:
    def work(rank: int) -> None:
        world = join(StopSignal())
        network = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(4)])
        mean = world.gradient_average(network)
        assert mean is not None
        for layer, value in {0: {0: 1.0, 2: 2.0}, 1: {1: 4.0, 2: 6.0}}[rank].items():
            network[layer].weight.grad = torch.full((3, 3), value)
        mean()
        assert [None if p.grad is None else p.grad[0, 0].item() for p in network.parameters()] == [0.5, 2.0, 4.0, None]

    together(work, tmp_path)


def test_an_infinite_gradient_in_one_process_is_one_in_all(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        world = join(StopSignal())
        torch.manual_seed(0)
        network = nn.Conv2d(3, 3, 1)
        before = network.weight.detach().clone()
        learner = Learner(
            network,
            partial(torch.optim.SGD, lr=1.0),
            None,
            skip_non_finite=True,
            gradient_average=world.gradient_average,
        )
        learner.backward(learner(torch.full((1, 3, 2, 2), float("inf") if rank else 1.0)).sum())
        learner.step()
        assert torch.equal(network.weight, before)

    together(work, tmp_path)


def test_the_leader_tells_tensors_and_plain_data_and_everyone_gives_its_own(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        world = join(StopSignal())
        tree = {
            "weights": torch.arange(6.0).view(2, 3).t(),
            "half": torch.ones((), dtype=torch.bfloat16),
            "n": [1, "é"],
        }
        told = world.broadcast(tree if rank == 0 else None)
        assert torch.equal(told["weights"], tree["weights"]) and told["n"] == tree["n"]  # type: ignore[arg-type]
        assert told["half"].dtype is torch.bfloat16 and world.broadcast({}) == {}
        everyones = world.all_gather({"name": "x" * (rank + 1), "of": torch.tensor([rank])})
        assert [each["name"] for each in everyones] == ["x", "xx"] and int(everyones[1]["of"]) == 1
        assert world.all_reduce_mean(torch.tensor([[float(rank), 4.0]])).tolist() == [[0.5, 4.0]]

    together(work, tmp_path)


def test_all_stop_after_the_same_step_and_an_evaluation_is_cut_short_by_a_signal_to_one_that_waits(
    tmp_path: Path,
) -> None:
    def work(rank: int) -> None:
        stop = StopSignal()
        world = join(stop)
        assert not world.should_stop(at_once=True)
        for step in range(100):
            if step == 5 and rank == 1:
                stop.note(signal.SIGTERM)
            if world.should_stop():
                break
        assert step == 6 and stop.signum == signal.SIGTERM

        stop.signum = None
        if rank == 0:
            wait_until(world.stop_requested)
        else:
            stop.note(signal.SIGUSR1)
        world.broadcast({"evaluated": False} if rank == 0 else None)
        assert stop.signum == signal.SIGUSR1

    together(work, tmp_path)


def test_an_error_of_any_process_ends_all_with_its_status_and_its_sentence_once(tmp_path: Path) -> None:
    from sr_runner.commands import run as cli

    bad = ["data.batch_size=3", "tracker=none", "model.num_filters=8", "model.num_res_blocks=1"]
    assert ranks.start(lambda rank: cli.main(bad), tmp_path).wait() == [2, 2]
    sentence = "sr-run: data.batch_size=3 cannot be shared by 2 processes; expected 2 or 4.\n"
    assert ranks.said(tmp_path) == sentence

    small = ["model.num_filters=8", "model.num_res_blocks=1", "tracker=none", "data.batch_size=2", "data.patch_size=32"]

    def work(rank: int) -> int:
        return cli.main([*small, f"trainer.precision={'fp16' if rank else 'fp32'}", "trainer.steps=2"])

    assert ranks.start(work, tmp_path).wait() == [2, 2]
    assert ranks.said(tmp_path).count("trainer.precision=fp16 needs a GPU") == 1
