"""Bytes to batches: CIFAR-10 and its synthetic stand-in."""

from datamodules.augment import AugmentedImages
from datamodules.batches import BatchSource
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.course import CourseStream
from datamodules.files import DatasetError

__all__ = ["AugmentedImages", "BatchSource", "CIFAR10DataModule", "CourseStream", "DatasetError"]
