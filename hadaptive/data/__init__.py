from hadaptive.data.images import decode, to_eight_bit
from hadaptive.data.loading import (
    EpochSampler,
    ImageDataset,
    LoadingError,
    UnreadableImageError,
    create_loader,
    derive_seed,
    worker_count,
)
from hadaptive.data.sources import ArraySource, FileSource, Source, Subset, hold_out
from hadaptive.data.splits import Splits, open_splits
from hadaptive.data.streams import StreamDataset, is_stream, open_stream
from hadaptive.data.transforms import Augmentation, Preprocessing, eval_transform, train_transform

__all__ = [
    "ArraySource",
    "Augmentation",
    "EpochSampler",
    "FileSource",
    "ImageDataset",
    "LoadingError",
    "Preprocessing",
    "Source",
    "Splits",
    "StreamDataset",
    "Subset",
    "UnreadableImageError",
    "create_loader",
    "decode",
    "derive_seed",
    "eval_transform",
    "hold_out",
    "is_stream",
    "open_splits",
    "open_stream",
    "to_eight_bit",
    "train_transform",
    "worker_count",
]
