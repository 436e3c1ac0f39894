"""Every error that a user can cause.

    EdgebuildError            exit 1   something is wrong with what was given; message and hint say what and what to do
    ├── UsageError            exit 2   the command line asks for something that does not exist
    ├── RecipeError           exit 3   recipe, target or calibration description (TOML) is wrong
    ├── ModelError            exit 4   the model cannot be read, exported or handled; names operator and layer
    ├── CalibrationError      exit 5   calibration data is missing or wrong
    ├── CompileError          exit 6   lowering, code generation or linking failed
    ├── CheckError            exit 7   the bundle does not reproduce its golden outputs, or misses its accuracy budget
    ├── BundleError           exit 8   a bundle, manifest, signature, key or trust file is not acceptable
    └── EnvironmentProblem    exit 9   this machine lacks something: a tool, room on the disk, a permission

Code below the command line raises these; only `edgebuild.cli` prints them.
"""

_LONGEST_WORD = 1000  # of a message; paths end at 4096, but no name in a model has to be shown whole


class EdgebuildError(Exception):
    """What was wrong and where (`message`), and what to do about it (`hint`): one printable line each.

    Names come from files that anybody may have written: what would move the cursor or break the line is escaped.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = printable(message), printable(hint)
        super().__init__(self.message)


def printable(text: str) -> str:
    """One line that moves no cursor."""
    words = (word if len(word) <= _LONGEST_WORD else f"{word[: _LONGEST_WORD // 2]}…" for word in text.split(" "))
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or ascii(c)[1:-1] for c in " ".join(words)).strip()


_ESCAPES = {"\n": " ", "\t": " "}


class UsageError(EdgebuildError):
    exit_code = 2


class RecipeError(EdgebuildError):
    exit_code = 3


class ModelError(EdgebuildError):
    exit_code = 4


class CalibrationError(EdgebuildError):
    exit_code = 5


class CompileError(EdgebuildError):
    exit_code = 6


class CheckError(EdgebuildError):
    exit_code = 7


class BundleError(EdgebuildError):
    exit_code = 8


class EnvironmentProblem(EdgebuildError):
    exit_code = 9
