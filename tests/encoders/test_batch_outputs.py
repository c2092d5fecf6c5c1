"""The output of a batch is the same, copied at once or sent in one transfer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featstore.encoders.batch_outputs import DeviceOutput, Layer, pack, to_host, unpack
from featstore.errors import EncoderContractError

COUNTS = np.array([7, 2, 5])


def made(kept, *, dtype=torch.float16, with_frames=True):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn((3, 7, 5), generator=generator)
    there = torch.from_numpy(kept) if isinstance(kept, np.ndarray) else kept
    layer = Layer(frames=frames, utterance=None, n_frames=kept, n_frames_on_device=there)
    return DeviceOutput(layer=layer, vectors=frames.mean(dim=1), frames=frames.to(dtype) if with_frames else None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(None, id="all frames count"),
        pytest.param(COUNTS, id="the host knows which count"),
        pytest.param(torch.from_numpy(COUNTS), id="the device knows which count"),
    ],
)
def test_what_is_sent_is_what_is_there(kept, dtype):
    one = made(kept, dtype=dtype)
    counts = COUNTS if kept is not None else np.full(3, 7)
    for sent in (one.layout(name="tiny").encoded(to_host(one.to_transfer()).arrays()), one.encoded(name="tiny")):
        np.testing.assert_array_equal(sent.utterance, one.vectors)
        for mine, row, count in zip(sent.frames, one.frames.numpy(), counts, strict=True):
            assert mine.dtype == row.dtype
            np.testing.assert_array_equal(mine, row[:count])


@pytest.mark.parametrize("kept", [COUNTS, torch.from_numpy(COUNTS)])
def test_what_waits_for_its_part_to_be_written_holds_none_of_the_memory_that_it_was_sent_in(kept):
    one = made(kept)
    copy = to_host(one.to_transfer())
    sent = one.layout(name="tiny").encoded(copy.arrays())
    for each in (sent.utterance, *sent.frames):
        assert not np.shares_memory(each, copy.packed.numpy())


def test_vectors_alone_are_sent_alone():
    one = made(COUNTS, with_frames=False)
    assert len(one.to_transfer()) == 1
    assert one.layout(name="tiny").encoded(to_host(one.to_transfer()).arrays()).frames is None


@pytest.mark.parametrize("with_frames", [True, False])
@pytest.mark.parametrize("wrong", [0, 8])
def test_counts_that_only_the_device_knew_are_checked_when_they_arrive(wrong, with_frames):
    """Whether frames are stored or not: vectors are means over as many."""
    one = made(torch.tensor([7, wrong, 5]), with_frames=with_frames)
    with pytest.raises(EncoderContractError, match=r"\b1\b.*\b7\b"):
        one.layout(name="tiny").encoded(to_host(one.to_transfer()).arrays())
    with pytest.raises(EncoderContractError, match=r"\b1\b.*\b7\b"):
        one.encoded(name="tiny")


def test_a_pack_holds_tensors_of_every_type_byte_for_byte():
    tensors = [torch.arange(5, dtype=torch.float16), torch.tensor([[True], [False]]), torch.arange(3), torch.ones(2, 0)]
    packed, segments = pack(tensors)
    assert all(each.start % 16 == 0 for each in segments)
    for tensor, array in zip(tensors, unpack(packed, segments), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
