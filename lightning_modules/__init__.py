"""Models, optimisers, schedules. Class paths, such as ``lightning_modules.MLP``, are an API."""

from lightning_modules.classifier import Classifier
from lightning_modules.cnn import CNN
from lightning_modules.fast_cnn import FastCNN
from lightning_modules.finetuned import FineTuned
from lightning_modules.mlp import MLP
from lightning_modules.muon import Muon
from lightning_modules.numpy_mlp import NumPyMLP
from lightning_modules.schedules import LinearSchedule

__all__ = [
    "CNN",
    "MLP",
    "Classifier",
    "FastCNN",
    "FineTuned",
    "LinearSchedule",
    "Muon",
    "NumPyMLP",
]
