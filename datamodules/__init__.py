"""Bytes to batches: CIFAR-10 and its synthetic stand-in."""

from datamodules.batches import BatchSource
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.course import CourseStream
from datamodules.files import DatasetError
from datamodules.image_folder import ImageFolderDataModule
from datamodules.transforms import AugmentedImages

__all__ = [
    "AugmentedImages",
    "BatchSource",
    "CIFAR10DataModule",
    "CourseStream",
    "DatasetError",
    "ImageFolderDataModule",
]
