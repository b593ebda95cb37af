"""Start Millrace: command line, environment and configuration file become one `Config`, the supervisor does the rest.

Every flag is also `MILLRACE_<FLAG>` in the environment and a key of the TOML file given with `--config`; the command
line wins over the environment, the environment over the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from server.child import EXIT_START
from server.config import WORKERS_MAX, Config, parse_boolean, parse_durability, parse_path, parse_size
from server.errors import ConfigError, DataError, StartError
from server.logs import configure_logs
from server.supervisor import EXIT_CONFIG, run

Parse = Callable[[str], object]

# flag: (field of Config, how its text is read, help)
FLAGS: dict[str, tuple[str, Parse, str]] = {
    "workers": ("workers", int, "HTTP processes (default: number of CPUs)"),
    "host": ("host", str, "address to listen on (default 127.0.0.1)"),
    "port": ("port", int, "HTTP port, 0 = any free one (default 8000)"),
    "admin-port": ("admin_port", int, "port of health, statistics and flush, 0 = any free one (default 8001)"),
    "data-dir": ("data_dir", parse_path, "databases and journal (default data)"),
    "memory": ("memory_bytes", parse_size, "the most shared memory to use (default 1GiB)"),
    "durability": ("durability", parse_durability, "when a write is acknowledged: memory, journal, database"),
    "persist-period-ms": ("persist_period_ms", int, "how often changes go to SQLite (default 1000)"),
    "classic": ("classic", parse_boolean, "the contract of the original services"),
    "log-level": ("log_level", str, "debug, info, warning, error (default info)"),
    "log-format": ("log_format", str, "text or json (default text)"),
    "stop-timeout-s": ("stop_timeout_s", float, "how long a stop waits for the last flush (default 30)"),
    "write-timeout-s": ("write_timeout_s", float, "an unanswered write gets 504 after this (default 10)"),
    "journal-segment": ("journal_segment_bytes", parse_size, "size of one journal file (default 64MiB)"),
    "journal-max": ("journal_max_bytes", parse_size, "size of the journal at which writes are refused (default 4GiB)"),
}


def main() -> int:
    """Return the exit code of the server."""
    arguments = parse_arguments()
    try:
        config = build_config(arguments, os.environ)
        configure_logs(config.log_level, config.log_format)
        if config.classic:
            print("classic: passwords are SHA-256 and part of every answer; for clients of the original services only")
        return run(config)
    except ConfigError as error:
        print(f"millrace: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except (StartError, DataError) as error:
        print(f"millrace: {error}", file=sys.stderr)
        return EXIT_START


def parse_arguments() -> dict[str, str]:
    """Return the flags that were given, as text; argparse leaves with 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="run.py", description="Millrace, a shared-memory HTTP server", epilog=__doc__)
    parser.add_argument("--config", help="TOML file with these settings")
    for flag, (_, parse, text) in FLAGS.items():
        if parse is parse_boolean:
            parser.add_argument(f"--{flag}", action="store_const", const="true", help=text)
        else:
            parser.add_argument(f"--{flag}", help=text)
    return {name.replace("_", "-"): value for name, value in vars(parser.parse_args()).items() if value is not None}


def build_config(arguments: Mapping[str, str], environment: Mapping[str, str]) -> Config:
    """Merge the sources. Raises `ConfigError` naming the setting that is wrong."""
    path = arguments.get("config", environment.get("MILLRACE_CONFIG"))
    given = _read_file(Path(path)) if path is not None else {}
    for flag in FLAGS:
        variable = "MILLRACE_" + flag.upper().replace("-", "_")
        if variable in environment:
            given[flag] = environment[variable]
        if flag in arguments:
            given[flag] = arguments[flag]
    settings: dict[str, object] = {"workers": min(os.cpu_count() or 1, WORKERS_MAX)}
    settings["failpoints"] = environment.get("MILLRACE_FAILPOINTS", "")
    for flag, text in given.items():
        name, parse, _ = FLAGS[flag]
        try:
            settings[name] = parse(text)
        except ValueError:
            raise ConfigError(f"{flag}: not a number: {text!r}") from None
        except ConfigError as error:
            raise ConfigError(f"{flag}: {error}") from None
    return Config(**settings)  # type: ignore[arg-type]


def _read_file(path: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    given = {key.replace("_", "-"): value for key, value in content.items()}
    if unknown := sorted(set(given) - set(FLAGS)):
        raise ConfigError(f"{path}: unknown setting {unknown[0]}")
    for key, value in given.items():
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{path}: {key} must be one value")
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in given.items()}


if __name__ == "__main__":
    sys.exit(main())
