"""Shares of the shards: every shard is in exactly one share, numbered as torchrun and SLURM do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import UsageError
from featstore.extract.distributed import Share, local_rank, parse_share, share_from_environment


@given(things=st.lists(st.integers(), unique=True), world_size=st.integers(1, 9))
def test_every_shard_is_of_one_share(things, world_size):
    shares = [Share(rank=rank, world_size=world_size).of(things) for rank in range(world_size)]
    assert sorted(each for share in shares for each in share) == sorted(things)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "rank", "world_size"),
    [
        ({}, 0, 1),
        ({"RANK": "2", "WORLD_SIZE": "4"}, 2, 4),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, 1, 3),
        ({"RANK": "2", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 2, 4),
        ({"SLURM_PROCID": "0"}, 0, 1),
        ({"SLURM_NTASKS": "8"}, 0, 1),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}, 5, 8),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, 4, 8),
        (
            {
                "SLURM_ARRAY_TASK_ID": "30",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "10",
            },
            2,
            4,
        ),
        # an element that is run again alone takes whatever is not in the store
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "5"}, 0, 1),
        # two tasks in each element of an array
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 7, 8),
    ],
)
def test_a_scheduler_says_which_share(environment, rank, world_size):
    share = share_from_environment(environment)
    assert (share.rank, share.world_size) == (rank, world_size)
    assert share.is_complete or str(share).startswith(f"share {rank + 1} of {world_size} (")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "1"}, "^RANK .*WORLD_SIZE"),
        ({"WORLD_SIZE": "4"}, "^WORLD_SIZE .*RANK"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, r"\b4\b.*\b4\b"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK.*'-1'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, r"\b0\b.*\b0\b"),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0"}, "--array=0-2"),
    ],
)
def test_numbers_that_do_not_go_together_are_said(environment, named):
    with pytest.raises(UsageError, match=named):
        share_from_environment(environment)


def test_a_share_by_hand_counts_from_one():
    assert parse_share("8/8").of("abcdefgh") == ("h",)
    for wrong in ("0/8", "9/8", "8", "a/b", "1/", "-1/2"):
        with pytest.raises(UsageError, match=f"--share.*{wrong!r}"):
            parse_share(wrong)


def test_the_number_on_a_machine_is_torchruns_or_slurms():
    assert local_rank({"LOCAL_RANK": "3", "SLURM_LOCALID": "0"}) == 3
    assert local_rank({"SLURM_LOCALID": "2"}) == 2
    assert local_rank({}) is None
