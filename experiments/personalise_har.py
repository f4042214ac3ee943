"""`experiments/personalise.py` on UCI HAR: thirty volunteers with a phone at the waist, five left out at a time.

Speaks to: what experiments/personalise.py does.
Run:       syncnorm run experiments/personalise_har.py --data.path "FOLDER/UCI HAR Dataset" [--quick]

FOLDER is the folder into which the archive of Anguita et al. (2013) was unpacked. A person's own test windows are the
last fifth of each activity in time.
"""

from personalise import personalise

from syncnorm.config import Data, Domains, Optim, Run

SUBJECTS = tuple(f"subject-{number}" for number in range(1, 31))

STUDY = personalise(
    "personalise_har",
    Run(
        data=Data("uci-har", validation=0.15),
        model="signal_cnn",
        world=Domains(domains=SUBJECTS, batch=32, test_batch=16),
        optim=Optim(lr=0.05, epochs=8),
    ),
    folds=[SUBJECTS[start::6] for start in range(6)],
    samples=[1, 2, 4, 16, 64, 200],
)
