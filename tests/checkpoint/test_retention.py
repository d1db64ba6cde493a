from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sr_runner.checkpoint.retention import BestN, EveryMinutes, EverySteps, Info, LastN, doomed


def infos(*psnr: float | None) -> list[Info]:
    """Checkpoints at steps 100, 200, ... a minute apart."""
    return [
        Info(100 * (i + 1), 60.0 * i, {} if value is None else {"valid/psnr": value}) for i, value in enumerate(psnr)
    ]


def kept(checkpoints: list[Info], *policies: object) -> list[int]:
    gone = doomed(checkpoints, policies)  # type: ignore[arg-type]
    return [info.step for info in checkpoints if info.step not in gone]


def test_the_last_n_stay() -> None:
    for count in range(1, 6):
        assert kept(infos(*[None] * count), LastN(3)) == [100 * i for i in range(1, count + 1)][-3:]


def test_the_best_n_stay_and_of_equals_the_earlier() -> None:
    assert kept(infos(30, 32, 31, 32, 29), BestN(2)) == [200, 400, 500]
    assert kept(infos(30, 32, 32, 29), BestN(1)) == [200, 400]
    assert kept(infos(30, 32, 31, 33), BestN(1, lower_is_better=True)) == [100, 400]


def test_a_metric_that_is_not_a_number_is_never_the_best() -> None:
    assert kept(infos(30, float("nan"), 29), BestN(1)) == [100, 300]


def test_policies_are_joined_by_any_keeps() -> None:
    assert kept(infos(33, 30, 31, 30, 30), LastN(1), BestN(1), EverySteps(200)) == [100, 200, 400, 500]


def test_one_of_every_interval_stays() -> None:
    assert kept(infos(*[None] * 6), EveryMinutes(2)) == [100, 300, 500, 600]


@given(st.lists(st.one_of(st.none(), st.floats(20, 40)), max_size=12), st.integers(0, 4), st.integers(0, 4))
def test_the_newest_checkpoint_always_stays(psnr: list[float | None], last: int, best: int) -> None:
    checkpoints = infos(*psnr)
    assert kept(checkpoints, LastN(last), BestN(best))[-1:] == [info.step for info in checkpoints][-1:]
