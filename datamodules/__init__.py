"""Bytes to batches: CIFAR-10, CIFAR-100, their synthetic stand-ins, and pictures of your own."""

from datamodules.batches import BatchSource
from datamodules.cifar10 import CIFAR10DataModule, CIFAR100DataModule
from datamodules.course import CourseStream
from datamodules.files import DatasetError
from datamodules.image_folder import ImageFolderDataModule
from datamodules.transforms import AugmentedImages

__all__ = [
    "AugmentedImages",
    "BatchSource",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CourseStream",
    "DatasetError",
    "ImageFolderDataModule",
]
