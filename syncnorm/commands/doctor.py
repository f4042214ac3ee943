"""`syncnorm doctor`: what is wrong with the norms of a model, or of a checkpoint."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncnorm import __version__
from syncnorm.commands.options import given_options, read_options, show_help
from syncnorm.errors import UserError
from syncnorm.files import write_file

if TYPE_CHECKING:
    from syncnorm.doctor.diagnosis import Diagnosis
    from syncnorm.doctor.fix import Fixed
    from syncnorm.doctor.subject import Subject

PROG = "syncnorm doctor MODEL"
ENOUGH = 64
"""Fewest samples of --input from which --fix takes new statistics."""


@dataclass(frozen=True)
class DoctorOptions:
    """Say what is wrong with the norms of MODEL: package.module:function, file.py:function, or a checkpoint's file.

    Exit code 1 if anything worse than a note was found.
    """

    input: str = ""
    """Shape of one sample, such as 3x32x32, or a file with a batch of your data (.pt, .npy, .safetensors)."""
    batch_size: int | None = None
    """Samples of a forward pass on one device."""
    world_size: int = 1
    """Number of devices."""
    accumulate: int = 1
    """Forward passes of a step of the optimiser."""
    checkpoint: Path | None = None
    """A checkpoint to load into the model."""
    policy: str = ""
    """Of a federation: its batch-norm policy, such as fedbn."""
    algorithm: str = ""
    """Of a federation: its algorithm, such as fedadam."""
    client_sizes: tuple[int, ...] = ()
    """Of a federation: samples of each client."""
    deploy: bool = False
    """Also tell what could be folded, and what that saves."""
    shards: tuple[Path, ...] = ()
    """A file with the labels (whole numbers) or a batch of the inputs of each device (.pt, .npy, .safetensors)."""
    mixup: float | None = None
    """The parameter alpha of MixUp, if training uses it."""
    cutmix: float | None = None
    """The parameter alpha of CutMix, if training uses it."""
    padded: int | None = None
    """The dimension of the input along which samples are padded with zeros."""
    checks: tuple[str, ...] = ()
    """Names of the checks to run (`syncnorm list check`); all by default."""
    json: bool = False
    """Print JSON instead of the table."""
    sarif: Path | None = None
    """Also write SARIF, for code review, to this file."""
    fix: Path | None = None
    """Fix what is safe in a copy, and write its weights to this file (.safetensors, or as torch.save does)."""


def doctor(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if set(arguments) & {"-h", "--help"}:
        show_help(DoctorOptions(), PROG)
    if not arguments or arguments[0].startswith("-"):
        raise UserError("write the model first: syncnorm doctor package.module:function, or a checkpoint's file.")
    text, *rest = arguments
    options = read_options(DoctorOptions(), given_options(rest, PROG), PROG)
    from syncnorm.doctor.subject import subject_of

    subject = subject_of(text)
    diagnosis = _diagnosis(subject, options)
    diagnosis.subject = subject.name
    fixed = _fixed(subject, options) if options.fix else None
    if options.sarif:
        from syncnorm.doctor.output.sarif import sarif
        from syncnorm.doctor.registry import CHECKS

        checks = {name: CHECKS[name].summary for name in [*diagnosis.checked, *diagnosis.skipped]}
        log = sarif(diagnosis, checks, __version__, subject.file, subject.line)
        write_file(options.sarif, json.dumps(log, indent=1) + "\n")
    if options.json:
        more = {"fixed": [asdict(one) for one in fixed.fixes], "left": fixed.left.as_dict()} if fixed else {}
        print(json.dumps(diagnosis.as_dict() | more, indent=1))
    else:
        print(diagnosis)
        if fixed:
            print(f"\n{options.fix}: {fixed}" if fixed.done else f"\n{options.fix} is not written: {fixed}")
    return 1 if (fixed.left if fixed else diagnosis).wrong else 0


def _fixed(subject: "Subject", options: DoctorOptions) -> "Fixed":
    """Fix a copy, and write its weights; nothing is written where nothing is fixed."""
    from syncnorm.doctor.fix import fix, fix_state
    from syncnorm.doctor.output.weights import write_state

    assert options.fix is not None
    sources = [path for path in (options.checkpoint, Path(subject.file) if not subject.live else None) if path]
    if not subject.live:
        fixed, state = fix_state(Path(subject.file), subject.model)
    else:
        inputs = _input(options.input)
        fixed = fix(subject.model, inputs, batches=_batches(inputs))
        state = fixed.model.state_dict()
    fixed.left.subject = subject.name
    if fixed.done:
        write_state(options.fix, state, sources)
    return fixed


def _batches(inputs: Any) -> Any:
    """Return a batch of the user's as data for new statistics; None if it is too small, or no one tensor."""
    import torch

    enough = isinstance(inputs, torch.Tensor) and len(inputs) >= ENOUGH
    return inputs.split(ENOUGH) if enough else None


def _diagnosis(subject: "Subject", options: DoctorOptions) -> "Diagnosis":
    from syncnorm.doctor.case import Case
    from syncnorm.doctor.diagnose import diagnose, examine

    checks = options.checks or None
    if not subject.live:
        if options.input or options.checkpoint or options.batch_size:
            raise UserError(
                f"{subject.name} is a checkpoint, which cannot run: leave out --input, --batch-size and "
                "--checkpoint, or name the function that builds the model, with --checkpoint."
            )
        case = Case(subject.model, live=False)
        case.policy, case.algorithm = options.policy or None, options.algorithm or None
        return examine(case, checks, subject.name)
    if options.checkpoint:
        _load(subject, options.checkpoint)
    return diagnose(
        subject.model,
        _input(options.input),
        batch_size=options.batch_size,
        world_size=options.world_size,
        accumulate=options.accumulate,
        policy=options.policy or None,
        algorithm=options.algorithm or None,
        client_sizes=options.client_sizes,
        deploy=options.deploy,
        shards=[_batch(path) for path in options.shards],
        mixup=options.mixup,
        cutmix=options.cutmix,
        padded=options.padded,
        checks=checks,
    )


def _load(subject: "Subject", path: Path) -> None:
    from syncnorm.doctor.subject import state_of

    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}.")
    try:
        subject.model.load_state_dict(state_of(path))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise UserError(f"{path} does not fit {subject.name}: {lines[0].rstrip('.')}.") from error


def _input(text: str) -> Any:
    """Return the input that --input means: a shape, or the batch in a file."""
    if not text:
        return None
    sizes = text.lower().split("x")
    if all(size.isdigit() for size in sizes):
        return tuple(int(size) for size in sizes)
    path = Path(text)
    if not path.is_file():
        raise UserError(f"--input is '{text}': write the shape of a sample, such as 3x32x32, or a file with a batch.")
    return _batch(path)


def _batch(path: Path) -> Any:
    import torch

    try:
        if path.suffix == ".npy":
            import numpy as np

            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file may hold anything
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"--input {path} cannot be read as a batch: {said}.") from error
    return next(iter(held.values())) if isinstance(held, dict) and len(held) == 1 else held
