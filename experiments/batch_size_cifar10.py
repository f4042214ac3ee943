"""`experiments/batch_size.py` on CIFAR-10: does batch norm lose accuracy as a device's batch gets small?

Speaks to: Group Norm, table of batch sizes (arXiv 1803.08494): ImageNet, ResNet-50, validation error of batch norm
           23.6 % with 32 images a GPU, 24.8 % with 8, 27.3 % with 4, 34.7 % with 2; of group norm about 24 %.
Run:       syncnorm run experiments/batch_size_cifar10.py --data.path FOLDER [--quick]

FOLDER holds CIFAR-10 as parquet files or image folders. Images are brought to 16x16 pixels, and a seed draws 5,000
training and 2,000 test images. Three strided convolutions end with 2x2 positions, so that one image gives a channel
4 values. The global batch is fixed at 32; the learning rate is tuned on validation data for every norm at every
number of images, and group norm's number of groups with it. Norms that do not go by the device's batch are trained at
the two ends.
"""

from dataclasses import replace

from syncnorm.config import Data, Devices, Optim, Run
from syncnorm.study import Choice, Curve, Grid, LogUniform, Study, Tune

SIZES = [1, 2, 4, 8, 32]
ENDS = [1, 32]

BASE = Run(
    data=Data("cifar10", size=16, train_limit=5000, test_limit=2000, validation=0.15),
    model="strided_cnn",
    model_options={"width": 16, "depth": 3},
    world=Devices(global_batch=32),
    optim=Optim(lr=0.05, epochs=4),
)

TUNE = Tune(
    {"lr": LogUniform(0.005, 0.5)},
    own={"gn": {"norm.options.groups": Choice([1, 2, 4, 8])}},
    per=("norm", "per_device_batch"),
    trials=6,
    halve=True,
    shared=False,
)

STUDY = Study(
    name="batch_size_cifar10",
    question="Does batch norm lose accuracy on CIFAR-10 as a device's batch gets small?",
    base=BASE,
    vary={"norm": ["bn"], "per_device_batch": SIZES},
    seeds=10,
    tune=TUNE,
    baselines=("svm", "nearest"),
    also=(Grid({"norm": ["sync_bn", "gn"], "per_device_batch": ENDS}),),
    figures=(Curve(x="per_device_batch", line="norm", title="Accuracy on CIFAR-10 against images per device"),),
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=1)),
        "vary": {"norm": ["bn"], "per_device_batch": ENDS},
        "also": (Grid({"norm": ["gn"], "per_device_batch": ENDS}),),
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "baselines": (),
    },
)
