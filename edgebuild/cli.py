"""The command line: the only place that prints, and where errors become exit codes."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebuild.core.errors import BundleError, EdgebuildError, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from edgebuild.core.bundle import Bundle
    from edgebuild.core.signer import Signer
    from edgebuild.core.trust import Trust

DEBUG_VARIABLE = "EDGEBUILD_DEBUG"
INTERNAL_ERROR = 70
INTERRUPTED = 130
LOCK_SECONDS = 30.0
EXIT_CODES = (
    "Exit codes: 0 done, 2 wrong command line, 3 recipe or target, 4 model, 5 calibration data, 6 compilation, "
    "7 check or accuracy, 8 bundle, key or trust file, 9 this machine (tool, disk, permission), 70 internal error, "
    "130 interrupted. With --json, errors are JSON on standard error."
)

app = typer.Typer(
    help="Compile a trained model and its handler into a small signed bundle for a device.",
    epilog=EXIT_CODES,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="Make and show signing keys.")
app.add_typer(keys_app, name="keys")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
SignerCommand = Annotated[
    str | None,
    typer.Option(
        "--signer",
        metavar="COMMAND",
        help="Command that signs: the manifest comes on standard input, a minisign signature of a trusted key goes to "
        "standard output.",
        show_default=False,
    ),
]
BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="An .ebundle file.", show_default=False)]


def main() -> None:
    """Runs the command line; every way out is an exit code of `EXIT_CODES`."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer's translation of KeyboardInterrupt
            _complain("interrupted", "", INTERRUPTED)
        sys.stdout.flush()
    except EdgebuildError as error:
        code = _complain(error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        code = _complain(_usage_message(error), "edgebuild --help", UsageError.exit_code)
    except BrokenPipeError:
        _drop_output()  # whoever reads it may stop before its end
        code = 0
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
            where = error.filename or "standard output"
            code = _complain(f"{where}: no room left on the disk", "free some space", EnvironmentProblem.exit_code)
        else:
            hint = f"this is a bug in edgebuild; {DEBUG_VARIABLE}=1 shows where"
            code = _complain(f"internal error: {type(error).__name__}: {error}", hint, INTERNAL_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Keep the interpreter from writing the rest of standard output as it ends, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_message(error: typer.TyperException) -> str:
    format_message = getattr(error, "format_message", None)
    return format_message() if format_message else str(error)


def _complain(message: str, hint: str, code: int) -> int:
    if "--json" in sys.argv:
        sys.stderr.write(json.dumps({"error": message, "hint": hint, "exit_code": code}) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return code


def _version(asked: bool) -> None:
    if asked:
        from edgebuild.core.digest import package_version

        sys.stdout.write(f"edgebuild {package_version('edgebuild')}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def _targets(incomplete: str) -> list[str]:
    from edgebuild.core.target_file import HOST, list_targets, target_aliases

    names = [HOST, *(target.name for target in list_targets())]
    names += [alias for aliases in target_aliases().values() for alias in aliases]
    return [name for name in names if name.startswith(incomplete)]


def _recipes(incomplete: str) -> list[str]:
    from edgebuild.projects import bundled_recipes

    return [name for name in bundled_recipes() if name.startswith(incomplete)]


TargetName = Annotated[
    str,
    typer.Option("--target", "-t", metavar="NAME", help="A target's name or .toml file.", autocompletion=_targets),
]


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new folder; also the bundle's name.")],
) -> None:
    """Write a recipe folder that compiles as it is."""
    from edgebuild.projects import new_recipe

    folder = new_recipe(Path(name))
    sys.stdout.write(f"{folder} is ready: edgebuild compile {folder} --target host\n")


@app.command(name="compile", epilog=EXIT_CODES)
def compile_(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe's folder, the name of one that comes with edgebuild, or a model: .onnx, .pt2, .keras, .h5, "
            ".tflite, a SavedModel folder. "
            "Without it: the recipe in the current folder, else `digits`.",
            autocompletion=_recipes,
            show_default=False,
        ),
    ] = None,
    target: TargetName = "host",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where bundle and report are written.")] = Path(),
    as_json: Json = False,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Signing key. Default: $EDGEBUILD_KEY, else a development key.", show_default=False
        ),
    ] = None,
    signer: SignerCommand = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights (.safetensors) instead of the recipe's.", show_default=False),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Without weights: the bundle is good for measuring speed only.")
    ] = False,
    float_: Annotated[bool, typer.Option("--float", help="Compile in float32, quantize nothing.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the recipe's training.", show_default=False)] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Calibration set instead of the recipe's: a folder of images, a folder with set.toml, or an .npz file "
            "with one array per model input, first axis = samples.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of calibration samples at most.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The bundle's name. Default: the recipe's, the file's.", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="The bundle's version. Default: the recipe's, 1.0.0.", show_default=False)
    ] = None,
    tune: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Measure block sizes on this machine for so long; only shapes that recipe.lock does not list. Without "
            "it: recipe.lock, then what comes with edgebuild, then a cost model.",
            show_default=False,
        ),
    ] = None,
    update_lock: Annotated[
        bool,
        typer.Option("--update-lock", help="Measure all shapes again (30 s without --tune), and write recipe.lock."),
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Measure ONNX Runtime INT8 in turns with the bundle.")
    ] = False,
) -> None:
    """Compile a recipe or a saved model into a signed bundle and a report."""
    from dataclasses import replace

    from edgebuild import pipeline, projects
    from edgebuild.core.disk import prepare_folder
    from edgebuild.core.target_file import load_target

    chosen = projects.resolve(recipe, projects.Overrides(weights, seed, calibration, samples))
    if float_:
        chosen = replace(chosen, model=replace(chosen.model, precision="float32"))
    identity = projects.identity(chosen, name, version)
    seconds = _tuning(tune, update_lock=update_lock)
    job = pipeline.Job(
        chosen, load_target(target), *identity, untrained=untrained, tune=seconds, update_lock=update_lock
    )
    chosen_signer, trusted = _signer(key, signer, None, None)
    prepare_folder(out)
    with _progress(plain=not as_json) as listener:
        result = pipeline.build(job, chosen_signer, listener)
        if baseline:
            from edgebuild.bench.session import with_baseline
            from edgebuild.core.bundle import read_bundle

            signed_by = read_bundle(result.bundle, trusted).signer
            assert signed_by is not None
            result = with_baseline(result, chosen, signed_by)
        path = pipeline.write_output(result, out)
    if as_json:
        _print_json(result.report)
    else:
        from edgebuild import views

        _console().print(views.summary(result.report, str(path)))


@app.command()
def inspect(
    bundle: BundleFile,
    trust: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Trust file; without it nothing is verified.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a bundle holds: manifest, files, operators, memory, what runs as integers."""
    from edgebuild import report
    from edgebuild.core import bundle as bundles
    from edgebuild.core.keys import load_trust

    data, trusted = _read(bundle), load_trust(trust) if trust else None
    with _naming(bundle):
        read = bundles.read_unverified(data) if trusted is None else bundles.read_bundle(data, trusted)
        found = report.of_bundle(read, bundles.signature_key_name(data))
    if as_json:
        _print_json(found)
    else:
        from edgebuild import views

        for table in views.inspection(found):
            _console().print(table, "")


@app.command("report")
def report_(
    file: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE|REPORT.json", help="A bundle with its report beside it, or the report."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Where to write the page.", show_default=False),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page, and open no browser.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a build measured: accuracy, where it is lost and why, in the browser."""
    from edgebuild.page import files

    found = files.load(file)
    if as_json:
        _print_json(found.report)
        return
    place = files.write(found, output)
    from edgebuild import views

    if not no_open and _has_display():
        import webbrowser

        webbrowser.open(place.resolve().as_uri())
    _console().print(views.diagnosis(found.report, str(place)))


def _has_display() -> bool:
    """Whether a window can open; a browser for terminals would take this one over."""
    wanted = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in wanted)


@app.command()
def verify(
    bundle: BundleFile,
    trust: Annotated[
        Path, typer.Option(metavar="FILE", help="Trust file: lines of minisign public keys.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Check a bundle's signature and every SHA-256."""
    from edgebuild.core.bundle import read_bundle
    from edgebuild.core.keys import load_trust

    data, trusted = _read(bundle), load_trust(trust)
    with _naming(bundle):
        found = read_bundle(data, trusted)
    _print_verified(found, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def sign(
    bundle: BundleFile,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Signing key. Default: $EDGEBUILD_KEY, else the development key.", show_default=False
        ),
    ] = None,
    signer: SignerCommand = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A signature made elsewhere: tar -xf BUNDLE manifest && minisign -Sm manifest.",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Trust file that must list the key of --signer, --signature; default: yours."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: the bundle itself is replaced.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a bundle again, with another key; nothing else of it changes."""
    from edgebuild.core.bundle import read_unverified
    from edgebuild.core.disk import write_together
    from edgebuild.stages.sign import sign_again

    path = out or bundle
    data = _read(bundle)
    with _naming(bundle):
        read = read_unverified(data)
    chosen, trusted = _signer(key, signer, signature, trust)
    with _naming(bundle):
        signed, found = sign_again(read, chosen, trusted)
    write_together(path.parent, {path.name: signed})
    _print_verified(found, as_json=as_json)


def _signer(
    key: Path | None, command: str | None, signature: Path | None, trust: Path | None
) -> "tuple[Signer, Trust]":
    """The one that was chosen, and the keys that its signature may be of."""
    from edgebuild.core import keys
    from edgebuild.core.signer import CommandSigner, SignatureFile

    if sum(choice is not None for choice in (key, command, signature)) > 1:
        raise UsageError("more than one signer", "choose one of --key, --signer and --signature")
    if command is None and signature is None:
        secret = keys.signing_key(key)
        return secret, {secret.key_id: secret.public}
    trusted = keys.load_trust(trust or keys.user_trust_path())
    if command is not None:
        return CommandSigner(command, trusted), trusted
    assert signature is not None
    return SignatureFile(signature, trusted), trusted


def _print_verified(found: "Bundle", *, as_json: bool) -> None:
    assert found.signer is not None
    manifest = found.manifest
    if as_json:
        fields = {"name": manifest.name, "version": manifest.version, "target": manifest.target}
        _print_json({**fields, "signer": found.signer.name, "files": len(manifest.files), "verified": True})
    else:
        what = f"{manifest.name} {manifest.version} for {manifest.target}"
        sys.stdout.write(f"{what}: signed by {found.signer.name}, {len(manifest.files)} files unchanged\n")


@keys_app.command("new")
def keys_new(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Default: the development key, which this machine then trusts.", show_default=False
        ),
    ] = None,
    password: Annotated[
        bool,
        typer.Option("--password", help="Protect it by a password: typed, or from $EDGEBUILD_KEY_PASSWORD."),
    ] = False,
) -> None:
    """Make a signing key: FILE (secret) and FILE.pub, in minisign's formats."""
    from edgebuild.core import keys, minisign

    path = out or keys.development_key_path()
    if path.exists():
        raise UsageError(f"{path}: exists already", "keep it, or choose another name with --out FILE")
    chosen = keys.new_password() if password else b""
    with _disk_errors(path):
        if out is None:
            keys.development_key(chosen)
        else:
            keys.write_new(path, minisign.generate(), chosen)
    public = keys.load_public(path.with_name(path.name + ".pub"))
    sys.stdout.write(f"{path}: keep it secret\n{path}.pub: key {public.name}, for trust files\n")


@keys_app.command("show")
def keys_show(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A secret or public key. Default: the development key.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a key's id and its public half, as a line for a trust file."""
    from edgebuild.core import keys

    path = file or keys.development_key_path()
    public = keys.load_public(path)
    if as_json:
        _print_json({"file": str(path), "key_id": public.name, "public": public.line()})
    else:
        sys.stdout.write(f"# {path}, key {public.name}\n{public.line()}\n")


@app.command()
def targets(as_json: Json = False) -> None:
    """List the kinds of devices."""
    from edgebuild.core.target_file import list_targets, load_target, target_aliases

    aliases = target_aliases()
    found = [load_target("host"), *list_targets()]
    if as_json:
        _print_json(
            [
                {
                    "name": target.name,
                    "alias": list(aliases.get(target.name, ())),
                    "description": target.description,
                    "triple": target.triple,
                    "cpu": target.cpu,
                    "features": list(target.features),
                    "engines": list(target.engines),
                }
                for target in found
            ]
        )
        return
    from edgebuild import views

    cells = [
        (", ".join([target.name, *aliases.get(target.name, ())]), target.description, " ".join(target.features))
        for target in found
    ]
    _console().print(views.columns("targets", ["name", "device", "CPU features used"], cells))


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with edgebuild."""
    from edgebuild.core.recipe import load_recipe
    from edgebuild.projects import bundled_recipes

    found = [load_recipe(folder) for folder in bundled_recipes().values()]
    if as_json:
        _print_json(
            [
                {
                    "name": item.name,
                    "version": item.version,
                    "description": item.identity.description,
                    "folder": str(item.folder),
                }
                for item in found
            ]
        )
        return
    from edgebuild import views

    cells = [(item.name, item.version, item.identity.description, str(item.folder)) for item in found]
    _console().print(views.columns("recipes", ["name", "version", "what it does", "folder"], cells))


@app.command()
def runtime(
    target: TargetName = "host",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to put it.", show_default=False)
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Put it beside this Python's own programs.")] = False,
) -> None:
    """Build edgebuild-run, the native program that runs bundles, and copy it."""
    import shutil
    import sysconfig

    from edgebuild.core.target_file import load_target
    from edgebuild.stages.runtime import runtime_binary

    if install == (output is not None):
        raise UsageError("name one place for edgebuild-run", "-o FILE, or --install")
    path = output or Path(sysconfig.get_path("scripts")) / "edgebuild-run"
    binary = runtime_binary(load_target(target).triple)
    with _disk_errors(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copy(binary, temporary)
        temporary.replace(path)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


@app.command(epilog=EXIT_CODES)
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Recipes (folder or name), .onnx files, or bundles; a bundle alone is timed without peers.",
            autocompletion=_recipes,
            show_default=False,
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="PEERS", help="onnxruntime,openvino,… Default: all installed.", show_default=False),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N,…", help="Numbers of threads, each pinned to a core.")] = "1,2",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each engine, at least; fast models run more often.")] = 50,
    target: TargetName = "host",
    untrained: Annotated[bool, typer.Option("--untrained", help="Build networks without weights for speed.")] = False,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights (.safetensors) of the recipe.", show_default=False)
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Calibration set, as for compile.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of calibration samples at most.", show_default=False)
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust file for a bundle.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure models in edgebuild's runtime and in other runtimes, in turns."""
    from edgebuild.bench import document, session
    from edgebuild.bench.case import Asked
    from edgebuild.bench.measure import Settings
    from edgebuild.core import keys

    settings = Settings(_names(against), _counts(threads), runs)
    asked = [Asked(model, target, untrained, weights, calibration, samples, trust) for model in models]
    with _progress(plain=False) as listener:
        found = session.bench(asked, settings, keys.signing_key(None), listener)
    whole = {"models": found, "summary": document.summary(found)} if len(found) > 1 else found[0]
    if as_json:
        _print_json(whole)
        return
    from edgebuild import views

    for table in views.bench(found, document.summary(found)):
        _console().print(table, "")


@app.command(epilog=EXIT_CODES)
def profile(
    bundle: BundleFile,
    threads: Annotated[int, typer.Option(min=1, help="Threads, each pinned to a core.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.svg", help="Draw a bar chart as well.", show_default=False),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust file; default: yours.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the time of every operator beside what this machine could do at best."""
    import tempfile

    from edgebuild.bench import chart
    from edgebuild.bench.case import Asked, of_bundle
    from edgebuild.bench.profile import by_kind
    from edgebuild.bench.profile import profile as measure

    with tempfile.TemporaryDirectory(prefix="edgebuild-profile-") as folder:
        found = measure(of_bundle(Asked(str(bundle), trust=trust), Path(folder)), threads)
    if output is not None:
        with _disk_errors(output):
            output.write_text(chart.svg(found), encoding="utf-8")
    if as_json:
        _print_json(found)
        return
    from edgebuild import views

    for table in views.profile(found, by_kind(found)):
        _console().print(table, "")


def _tuning(seconds: float | None, *, update_lock: bool) -> float:
    """Seconds of search."""
    if update_lock and seconds == 0:
        raise UsageError("--update-lock needs time to measure", "leave out --tune 0")
    return LOCK_SECONDS if update_lock and seconds is None else seconds or 0.0


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(count) for count in text.split(","))
    except ValueError as error:
        raise UsageError(f"--threads {text}: no list of numbers", "e.g. --threads 1,2") from error


@app.command()
def demo() -> None:
    """Compile `digits` for this machine, run it on held-out digits, and show what came out."""
    from edgebuild import demo as demonstration
    from edgebuild import views

    with _progress() as listener:
        found = demonstration.run(listener)
    _console().print(views.rows("demo: handwritten digits on this machine", found))


def _progress(*, plain: bool = True) -> Any:
    from rich.console import Console

    from edgebuild.views import StageProgress

    return StageProgress(Console(stderr=True), plain=plain)


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _disk_errors(where: Path) -> Any:
    from edgebuild.core.disk import disk_errors

    return disk_errors(where)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file in front of what is wrong with its bytes."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise EnvironmentProblem(f"{path}: {reason}", "name an .ebundle file that `edgebuild compile` wrote") from error
