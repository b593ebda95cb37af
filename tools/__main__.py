"""`python -m tools <command>`: one entry for everything an operator or a tester runs beside the server.

Each command is a module with `main(arguments) -> exit code`: the one of its name, or `main` in the package of its name.
It is imported when it is asked for, so a tool that wants much does not slow down the others.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "bench": "measure the server against nginx, Redis, FastAPI and the floor of Python, in turn",
    "crash": "kill processes of a server of its own under load, and check that nothing acknowledged is lost",
    "compare": "the original experiment on the four earlier shapes of the system and on the server, in turn",
    "journal": "check or print a journal, and save what can be saved of a damaged one",
    "lineage": "run one of the four earlier shapes: original, v1, v2, v3",
    "load": "send the original work (users, products, orders) to a running server and read everything back",
    "report": "CPU, memory, context switches and disk of a running server, process by process, over time",
    "verify": "compare every record in memory with the SQLite files",
}
EXIT_USAGE = 2


def main(arguments: list[str]) -> int:
    """Run the command named by the first argument and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_USAGE
    name = arguments[0]
    if name not in COMMANDS:
        print(f"no such command: {name}\n\n{_usage()}", file=sys.stderr)
        return EXIT_USAGE
    module = importlib.import_module(f"tools.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"tools.{name}.main")
    code: int = module.main(arguments[1:])
    return code


def _usage() -> str:
    lines = ["usage: python -m tools <command> [options]", "", "commands (each has --help):"]
    lines += [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
