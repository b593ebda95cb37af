"""`python -m tools lineage`: run one of the four earlier shapes of the system.

    python -m tools lineage run v1 --port 8000 --data-dir data-v1

It serves the classic contract (passwords as SHA-256, small error bodies) until SIGTERM or Ctrl-C, then flushes.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from server.data_directory import INSTANCE_NAME, DataDirectory
from server.errors import StartError
from tools.lineage import original, v1, v2, v3
from tools.lineage.launcher import Launcher

SHAPES = {"original": original, "v1": v1, "v2": v2, "v3": v3}
EXIT_NOT_STARTED = 3


def main(arguments: list[str]) -> int:
    """Run a shape; 0 when it was stopped and everything is in SQLite, 5 when not, 3 when it could not start."""
    options = _parse(arguments)
    try:
        directory = DataDirectory(options.data_dir)  # its lock: as long as this process and its children live
        if (options.data_dir / INSTANCE_NAME).exists():
            raise StartError(f"data directory {options.data_dir}: it belongs to the server itself")
        roles = SHAPES[options.shape].ROLES
        with closing(directory):
            return Launcher(options.shape, roles, options.port, options.data_dir, options.period_ms / 1000).run()
    except (StartError, OSError) as error:
        print(f"lineage: {error}", file=sys.stderr)
        return EXIT_NOT_STARTED


def _parse(arguments: list[str]) -> argparse.Namespace:
    summaries = [f"  {name:<10}{(shape.__doc__ or '').splitlines()[0]}" for name, shape in SHAPES.items()]
    parser = argparse.ArgumentParser(
        prog="python -m tools lineage",
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join(["shapes:", *summaries]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = parser.add_subparsers(required=True, metavar="run").add_parser("run", help="start a shape")
    run.add_argument("shape", choices=SHAPES)
    run.add_argument("--port", type=port, default=8000, help="0: any free one (default: %(default)s)")
    run.add_argument("--data-dir", type=Path, required=True, help="where the three databases are")
    run.add_argument("--period-ms", type=period_ms, default=1000, help="persistence period (default: %(default)s)")
    return parser.parse_args(arguments)


def port(text: str) -> int:
    """Return the option as a number; argparse names this function when it is none."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return value


def period_ms(text: str) -> int:
    """Return the option as a number; argparse names this function, too."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
