"""Where the project's own files lie when a stage runs in a copy of it.

`dvc exp run --temp` and queued experiments work in a copy below the project's .dvc/tmp/exps, which leaves out what git
ignores and goes when the experiment ends. Raw data and what an interrupted training has reached belong to the project.
"""

from pathlib import Path


def homes() -> list[Path]:
    """The working folder, and after it the project that it is a temporary copy of, if it is one."""
    return [Path(), *(parent.parent for parent in Path.cwd().parents if parent.name == ".dvc")]


def resume_folder() -> Path:
    """Where trainings keep what they have reached: the same folder for the project and all its experiments."""
    return homes()[-1] / "data/resume"


def file(name: str) -> Path | None:
    """A file that params.yaml or a command line names, below the first of `homes` that has it; ~ is the home folder."""
    wanted = Path(name).expanduser()
    return next((home / wanted for home in homes() if (home / wanted).is_file()), None)
