"""Small reference networks, each taking a norm factory."""

from syncnorm.models.binary_mlp import BinaryMLP
from syncnorm.models.factory import NormFactory
from syncnorm.models.ic_mlp import IndependentComponentMLP
from syncnorm.models.registry import MODELS, ModelSpec, make_model, model_names, register_model
from syncnorm.models.resnet import ResNet, resnet18, thin_resnet
from syncnorm.models.signal_cnn import SignalCNN
from syncnorm.models.small import MLP, SmallCNN
from syncnorm.models.unet import UNet

__all__ = [
    "MLP",
    "MODELS",
    "BinaryMLP",
    "IndependentComponentMLP",
    "ModelSpec",
    "NormFactory",
    "ResNet",
    "SignalCNN",
    "SmallCNN",
    "UNet",
    "make_model",
    "model_names",
    "register_model",
    "resnet18",
    "thin_resnet",
]
