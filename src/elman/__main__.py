"""The command `elman` (also `python -m elman`): reads the command line, catches Ctrl-C, sets the exit code.

Exit codes: 0 done, 2 wrong argument or file, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
"""

from __future__ import annotations

import os
import signal
import sys
import threading

_INTERRUPTED, _TERMINATED = 128 + 2, 128 + 15


class _Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C but for the exit code."""


def main(argv=None):
    """Runs the command line `argv` (default: that of the process) and returns the exit code."""
    before = None
    try:
        before = _on_terminate(_raise_terminated)
        from . import demo
        from .benchmark import command as bench

        arguments = _parser(demo, bench).parse_args(argv)
        return arguments.run(arguments)
    except _Terminated:
        return _TERMINATED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `elman demo | head`: nobody reads any more, so say nothing, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of writing to stdout: a full disk
        print(f"elman: error: {error}", file=sys.stderr)
        return 1
    finally:
        _on_terminate(before)


def _parser(*commands_of):
    import argparse

    from . import __version__

    parser = argparse.ArgumentParser(
        prog="elman",
        description="Recurrent networks on the CPU. `elman COMMAND --help` says what a command can do.",
    )
    parser.add_argument("--version", action="version", version=f"elman {__version__}")
    parser.set_defaults(run=lambda arguments: parser.print_help() or 0)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in commands_of:
        module.add_command(commands)
    return parser


def _raise_terminated(number, frame):
    raise _Terminated


def _on_terminate(handler):
    """Sets the SIGTERM handler and returns the one before; does nothing outside the main thread."""
    if handler is None or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)


if __name__ == "__main__":
    sys.exit(main())
