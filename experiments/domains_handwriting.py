"""`experiments/domains.py` on real domains: handwritten digits of three collections.

Speaks to: what experiments/domains.py does.
Run:       syncnorm run experiments/domains_handwriting.py --data.path FOLDER [--quick]

FOLDER holds usps (envelopes) and mnist10k (forms; 10,000 of MNIST's), each as a parquet file, a folder of them, or an
image folder; the UCI digits (tablets) are embedded. All are brought to 16x16 pixels and to at most 1,437 training
images, as many as UCI has.
"""

from domains import leave_one_out

from syncnorm.config import Data, Domains, Optim, Run

STUDY = leave_one_out(
    "domains_handwriting",
    "What do per-domain statistics buy on three real collections of digits, with domain labels and without?",
    Run(
        data=Data("handwriting", size=16, train_limit=1437, test_limit=1000, validation=0.15),
        model="small_cnn",
        world=Domains(domains=("usps", "mnist10k", "digits"), batch=32, test_batch=64),
        optim=Optim(lr=0.05, epochs=8),
    ),
)
