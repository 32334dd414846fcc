"""``vst``: the entry point of the command line. Every error ends in one line and an exit code.

The exit code is 2 for a user's mistake, 1 for a failed check or a bug, 130 for Ctrl-C and 143 for
SIGTERM.
"""

from __future__ import annotations

import _thread
import errno
import os
import signal
import sys
import threading
import warnings
from typing import Any

import click

from virchow_st import __version__
from virchow_st.errors import VirchowSTError, to_write_or
from virchow_st.runtime.distributed import is_main_process
from virchow_st.runtime.interrupt import Terminated, exit_code, raise_on_sigterm
from virchow_st_cli.bench import bench
from virchow_st_cli.cells import cells
from virchow_st_cli.console import Console, print_anything
from virchow_st_cli.copy import copy
from virchow_st_cli.demo import demo
from virchow_st_cli.denoise import denoise
from virchow_st_cli.doctor import doctor
from virchow_st_cli.evaluate import evaluate
from virchow_st_cli.export import export
from virchow_st_cli.extract import extract
from virchow_st_cli.figures import figures
from virchow_st_cli.predict import predict
from virchow_st_cli.push import push
from virchow_st_cli.report import report
from virchow_st_cli.simulate import simulate
from virchow_st_cli.stores import inspect, verify
from virchow_st_cli.train import train

# Errors of writing that the user can mend: a full disk, no permission, a file in place of a folder.
_UNUSABLE_PLACE = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO,
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vst")
def cli() -> None:
    """Predict gene expression at 2 µm from H&E.

    Run `vst extract` once per slide, then `vst train`, `vst evaluate`, `vst figures` and
    `vst report` for every decoder.
    `vst demo` runs all of them on simulated slides.
    """


for _command in (
    doctor,
    simulate,
    extract,
    inspect,
    verify,
    train,
    evaluate,
    figures,
    report,
    predict,
    denoise,
    cells,
    export,
    copy,
    push,
    demo,
    bench,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    # torch's OpenMP threads spin for milliseconds after their work and keep the cores from the
    # threads of kernels and reader. libgomp reads this setting when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    print_anything()
    sys.unraisablehook = _keep_interrupt
    raise_on_sigterm()
    # timm and torch-geometric still compile a few functions in a way that torch has deprecated.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
    sys.exit(run(sys.argv[1:]))


def _keep_interrupt(unraisable: Any) -> None:
    """Raise a Ctrl-C again that arrived inside a finaliser, where Python would only print it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
        threading.Timer(0.01, _thread.interrupt_main, [number]).start()
    else:
        sys.__unraisablehook__(unraisable)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    console = Console()
    try:
        arguments = arguments or ["--help"]
        return cli.main(args=arguments, prog_name="vst", standalone_mode=False) or 0
    except click.ClickException as e:
        if not is_main_process():  # all processes of torchrun find the same mistake; one reports it
            return e.exit_code
        if isinstance(e, click.UsageError) and e.ctx is not None:
            console.note(e.ctx.get_usage())
        console.error(e.format_message())
        return e.exit_code
    except (click.Abort, KeyboardInterrupt) as e:
        console.error(
            "stopped; what was finished is kept, the same command resumes there "
            "(vst train with --resume)"
        )
        return exit_code(e)
    except VirchowSTError as e:
        if "--debug" in arguments:
            raise
        console.error(str(e))
        return 2
    except Exception as e:
        if "--debug" in arguments:
            raise
        if isinstance(e, OSError) and e.errno in _UNUSABLE_PLACE:
            console.error(f"{e.filename or 'output'}: {e.strerror}; {to_write_or(e)}")
            return 2
        if isinstance(e, UnicodeEncodeError):
            console.error(
                f"a name contains {e.object[e.start : e.end]!r}, which the locale's encoding "
                "lacks; set LC_ALL=C.UTF-8"
            )
            return 2
        name = type(e).__name__
        console.error(f"{name}: {e}; this is a fault of virchow_st, --debug shows where")
        return 1


if __name__ == "__main__":
    main()
