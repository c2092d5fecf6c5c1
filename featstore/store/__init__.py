"""The store: format, writer and reader. Only `torch_dataset` imports torch, and only `zarr_io` imports zarr."""

from featstore.store.encoder_groups import (
    EncoderGroup,
    note_in_encoder_group,
    read_encoder_group,
    read_encoder_groups,
)
from featstore.store.feature_set import FeatureSet
from featstore.store.format import FORMAT_VERSION, Commit, Member, Segment, ShardIdentity, is_group_name
from featstore.store.frames import Frames, PaddedFrames, RaggedFrames
from featstore.store.part_writer import EmbeddedWindow, PartWriter, WindowBlock
from featstore.store.reader import FeatureSets, Store, open_store
from featstore.store.texts import check_is_space_of_texts, has_texts, is_space_of_texts, write_texts
from featstore.store.writer import SplitWriter, find_split_writer, is_split_begun, open_split_writer, recipe_groups

__all__ = [
    "FORMAT_VERSION",
    "Commit",
    "EmbeddedWindow",
    "EncoderGroup",
    "FeatureSet",
    "FeatureSets",
    "Frames",
    "Member",
    "PaddedFrames",
    "PartWriter",
    "RaggedFrames",
    "Segment",
    "ShardIdentity",
    "SplitWriter",
    "Store",
    "WindowBlock",
    "check_is_space_of_texts",
    "find_split_writer",
    "has_texts",
    "is_group_name",
    "is_space_of_texts",
    "is_split_begun",
    "note_in_encoder_group",
    "open_split_writer",
    "open_store",
    "read_encoder_group",
    "read_encoder_groups",
    "recipe_groups",
    "write_texts",
]
