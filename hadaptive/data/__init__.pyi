from hadaptive.data.config import Augmentation, DataConfig, Preprocessing, is_stream
from hadaptive.data.dataset import ImageData, open_data
from hadaptive.data.draw import hold_out
from hadaptive.data.images import decode, to_eight_bit
from hadaptive.data.label_sets import LabelSets
from hadaptive.data.loading import (
    EpochSampler,
    ImageDataset,
    LoadingError,
    UnreadableImageError,
    create_loader,
    derive_seed,
    worker_count,
)
from hadaptive.data.manifest import Entry, Manifest
from hadaptive.data.sources import ArraySource, FileSource, Numbered, Source, Subset
from hadaptive.data.streams import StreamDataset, located_stream, open_stream
from hadaptive.data.transforms import eval_transform, train_transform

__all__ = [
    "ArraySource",
    "Augmentation",
    "DataConfig",
    "Entry",
    "EpochSampler",
    "FileSource",
    "ImageData",
    "ImageDataset",
    "LabelSets",
    "LoadingError",
    "Manifest",
    "Numbered",
    "Preprocessing",
    "Source",
    "StreamDataset",
    "Subset",
    "UnreadableImageError",
    "create_loader",
    "decode",
    "derive_seed",
    "eval_transform",
    "hold_out",
    "is_stream",
    "located_stream",
    "open_data",
    "open_stream",
    "to_eight_bit",
    "train_transform",
    "worker_count",
]
