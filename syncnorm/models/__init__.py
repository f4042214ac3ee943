"""Small reference networks, each taking a norm factory."""

from syncnorm.models.factory import NormFactory
from syncnorm.models.registry import make_model, model_names
from syncnorm.models.resnet import ResNet, resnet18, thin_resnet
from syncnorm.models.small import MLP, SmallCNN

__all__ = ["MLP", "NormFactory", "ResNet", "SmallCNN", "make_model", "model_names", "resnet18", "thin_resnet"]
