"""Load a study from the Python file that defines it."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb

from syncnorm.errors import UserError
from syncnorm.study.plan.spec import Study


def load_study(file: str) -> Study:
    """Return the STUDY that a Python file defines; any problem in the file raises `UserError` with its line.

    The file's folder and the working directory become importable, for the user's own models and layers. Every process
    that trains the study's runs knows the names that the file registers (`syncnorm.register_*`).
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no experiment file {path}.")
    sys.path.extend(str(folder) for folder in (path.parent.resolve(), Path.cwd()) if str(folder) not in sys.path)
    spec = spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: its name must end in .py.")
    module = module_from_spec(spec)
    if path.stem not in sys.modules:
        sys.modules[path.stem] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = path if error.filename == str(path.resolve()) else error.filename
        raise UserError(f"{where}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path.resolve())]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {what}{error}") from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise UserError(f"{path} defines no STUDY: write STUDY = Study(...) with syncnorm.study.Study.")
    return study
