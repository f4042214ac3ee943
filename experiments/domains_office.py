"""`experiments/domains.py` on real domains: Office-Caltech10's four cameras and catalogues.

Speaks to: BNE (arXiv 2011.12672), which reports on Office-Caltech; no table of it could be read, so none is quoted.
Run:       syncnorm run experiments/domains_office.py --data.path FOLDER [--quick]

FOLDER holds amazon, caltech10, dslr and webcam, each as a parquet file or an image folder. Images are brought to
32x32 pixels, and the network is small and trained from scratch, so accuracies are far below those of pretrained
networks: the study compares only the treatment of statistics. Every domain has at most 300 training images, so that
none outweighs another.
"""

from domains import leave_one_out

from syncnorm.config import Data, Domains, Optim, Run

STUDY = leave_one_out(
    "domains_office",
    "What do per-domain statistics buy between cameras and catalogues, with domain labels and without?",
    Run(
        data=Data("office_caltech10", size=32, train_limit=300, augment="shift_flip", validation=0.15),
        model="small_cnn",
        model_options={"width": 24},
        world=Domains(domains=("amazon", "caltech10", "dslr", "webcam"), batch=32, test_batch=64),
        optim=Optim(lr=0.05, epochs=20),
    ),
)
