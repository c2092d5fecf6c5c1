"""X-ARES itself and featstore on the same shards: what ``--padding xares --protocol xares`` promises."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.parity import Parity, parities
from benchmarks.peer.environment import why_not


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_scores_under_xares_are_those_of_xares_itself(tmp_path):
    found = parities(tmp_path, seeds=(0, 1, 2, 3, 4))

    assert [each.what for each in found if not each.holds()] == []
    assert all(0.3 < min(each.xares) < 0.98 for each in found if "neighbours" in each.what)


def test_equal_means_every_run_of_the_other_side():
    equal = Parity(what="k", xares=(0.5, 0.5), ours=(0.5,), rule="equal", step=1e-6)

    assert equal.holds()
    assert not dataclasses.replace(equal, xares=(0.5, 0.51)).holds()


def test_a_probe_is_to_lie_within_the_seeds_of_the_other_side():
    probe = Parity(what="p", xares=(0.6, 0.7), ours=(0.62, 0.66), rule="within its seeds", step=0.01)

    assert probe.holds()
    assert not dataclasses.replace(probe, ours=(0.75, 0.74)).holds()
