"""The supervisor process: makes what outlives a child, forks the children, replaces the dead ones, stops in order.

    phases of a start     writers, then the manager (loads the table), then the persister, then the workers
    phases of a stop      workers (finish what is in flight), persister (last flush), manager and writers

A phase begins when every child of the one before has said that it is ready (start) or has gone (stop). Signals and
deaths are descriptors in one selector; nothing is polled. A child that dies outside of its own stop phase is replaced,
also while the server stops, because the last flush needs the processes below it.

There is no thread and no event loop here, so forking is safe at any time (fork context, asked for explicitly).
"""

from __future__ import annotations

import logging
import os
import resource
import selectors
import signal
import time
from datetime import UTC, datetime
from types import FrameType

from setproctitle import setproctitle

from persist import persister, writer
from server import manager, worker
from server.child import EXIT_CRASH, EXIT_OK, EXIT_START, NEVER, SUPERVISED_SIGNALS, Child
from server.commands import DATABASE_NAMES, PERSISTED_KINDS, Kind
from server.config import WORKERS_MAX, Config
from server.data_directory import DataDirectory, Run
from server.listeners import BACKLOG
from server.shared import Shared
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.shm.table import TableReader

log = logging.getLogger(__name__)

EXIT_CONFIG, EXIT_UNFLUSHED = 4, 5

SPARE_SLOTS = 4  # worker slots beyond --workers that SIGTTIN can fill; each costs two sockets and a socket pair
START_TRIES = 3  # deaths of one child before the first ready line: then the start has failed
EPOCH_SHIFT = 20  # epoch = run << 20 | starts of the manager in this run
DRAIN_S = 15.0  # a worker told to stop is killed after this
SAME_SIGNAL_S = 0.5  # timeout(1) and terminals signal the process and its group: that is one wish, not two
LATE_LEAVE_S = 0.5  # what holds up the flush, a locked database, holds up its writer too
LEAVE_S = 5.0  # manager and writers have nothing left to do when they are told to stop


def run(config: Config) -> int:
    """Run the server; return the exit code of the process."""
    directory = DataDirectory(config.data_dir)
    try:
        return Supervisor(config, directory).run()
    finally:
        directory.close()


class Supervisor:
    """All handles and all children; `run` is the loop."""

    def __init__(self, config: Config, directory: DataDirectory) -> None:
        """Make everything that must outlive a child. Raises `StartError`, `DataError`, `ConfigError`."""
        self._config = config
        self._directory = directory
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._exit_code: int | None = None
        self._stop_stage: list[list[Child]] = []
        self._deadline = NEVER
        self._rolling: list[Child] = []
        self._leaving: list[Child] = []  # workers that are not to come back
        self._is_stopping = self._is_serving = False
        self._stop_started = 0.0
        self._is_late = False  # a child had to be killed
        self._rows_before = 0
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        _raise_descriptor_limit()
        instance = directory.next_run("classic" if config.classic else "default")
        if stale := directory.remove_stale_segment():
            log.warning("removed the segment of a killed run segment=%s", stale)
        self._run_number = instance.run
        slots = min(WORKERS_MAX, config.workers + SPARE_SLOTS)
        self._ready_fd, ready_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._shared = Shared.make(config, instance.id, slots, ready_write)
        self.port = self._shared.listeners[0].getsockname()[1]
        self.admin_port = self._shared.admin_listener.getsockname()[1]
        self._words = self._shared.segment.words
        self._words[layout.WORKERS] = self._words[layout.LISTENERS] = config.workers
        self._counters = counters_block(self._shared.segment, counters.SUPERVISOR)
        self._counters[counters.PID] = os.getpid()
        self._counters[counters.STARTED_MS] = int(time.time() * 1000)
        self._writers = [self._writer(kind) for kind in PERSISTED_KINDS]
        self._manager = Child("manager", counters.MANAGER, signal.SIGUSR1, self._run_manager)
        self._persister = Child("persister", counters.PERSISTER, signal.SIGUSR1, self._run_persister)
        self._workers = [self._worker(slot) for slot in range(config.workers)]
        self._start_phases = [self._writers, [self._manager], [self._persister], self._workers]

    # ---- the children --------------------------------------------------------------------------

    def _writer(self, kind: Kind) -> Child:
        def run() -> int:
            return writer.main(self._config, self._shared, kind)

        return Child(f"writer-{DATABASE_NAMES[kind]}", counters.WRITER + kind, signal.SIGUSR1, run)

    def _worker(self, slot: int) -> Child:
        def run() -> int:
            return worker.main(self._config, self._shared, slot)

        return Child(f"worker-{slot}", counters.WORKER + slot, signal.SIGTERM, run)

    def _run_manager(self) -> int:
        return manager.main(self._config, self._shared, self._words[layout.MANAGER_EPOCH])

    def _run_persister(self) -> int:
        return persister.main(self._config, self._shared)

    @property
    def _children(self) -> list[Child]:
        return [*self._writers, self._manager, self._persister, *self._workers, *self._leaving]

    def _start(self, child: Child) -> None:
        segment = self._shared.segment
        if child is self._manager:
            starts = counters_block(segment, child.block)[counters.STARTS] + 1
            self._words[layout.MANAGER_EPOCH] = self._run_number << EPOCH_SHIFT | starts
        process = child.start(segment)
        self._selector.register(process.sentinel, selectors.EVENT_READ, child)
        self._write_run()

    def _write_run(self) -> None:
        pids = {"supervisor": os.getpid()}
        pids.update({child.name: child.pid for child in self._children if child.pid})
        run = Run(self._config.host, self.port, self.admin_port, self._started, self._shared.segment.name, pids)
        self._directory.write_run(run)

    # ---- the loop ------------------------------------------------------------------------------

    def run(self) -> int:
        """Start, watch and stop the children; return the exit code."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in SUPERVISED_SIGNALS:
            signal.signal(number, self._note_signal)
        setproctitle("millrace: supervisor")
        self._selector.register(wake_read, selectors.EVENT_READ, wake_read)
        self._selector.register(self._ready_fd, selectors.EVENT_READ, self._ready_fd)
        try:
            self._start_next_phase()
            while self._exit_code is None:
                for key, _ in self._selector.select(self._timeout_s()):
                    if isinstance(key.data, Child):
                        self._reap(key.data)
                    elif key.data == self._ready_fd:
                        self._note_ready()
                    else:
                        os.read(wake_read, 512)
                while self._signals:
                    self._handle_signal(self._signals.pop(0))
                self._act_on_time()
            return self._exit_code
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):  # late ones must not change the exit code
                signal.signal(number, signal.SIG_IGN)
            self._kill_all()
            signal.set_wakeup_fd(-1)
            self._close()

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _timeout_s(self) -> float | None:
        at = min([self._deadline, *(child.restart_at for child in self._children)])
        return None if at == NEVER else max(0.0, at - time.monotonic())

    def _act_on_time(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.restart_at <= now:
                self._shared.failpoint("supervisor.before_restart")
                self._start(child)
        if self._deadline <= now:
            self._miss_deadline()

    def _start_next_phase(self) -> None:
        """Start the next children; after the last phase, serve."""
        if self._start_phases:
            for child in self._start_phases[0]:
                self._start(child)
        else:
            self._is_serving = True
            host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
            print(f"ready http://{host}:{self.port} pid={os.getpid()} workers={self._config.workers}", flush=True)

    def _note_ready(self) -> None:
        for block in os.read(self._ready_fd, 512):
            for child in self._children:
                if child.block == block and child.pid:
                    child.is_ready = True
                    log.info("ready role=%s pid=%d", child.name, child.pid)
        if self._start_phases and not self._is_stopping and all(child.is_ready for child in self._start_phases[0]):
            self._start_phases.pop(0)
            self._start_next_phase()
        self._roll_next()

    def _reap(self, child: Child) -> None:
        """A child has gone: as told, or it has to be replaced."""
        if child.process is None:
            return
        self._selector.unregister(child.process.sentinel)
        code = child.take_exit_code(self._shared.segment)
        if child is self._manager:
            self._words[layout.MANAGER_EPOCH] += 1  # from now on no manager is ready
        if child.is_told_to_leave:
            log.info("left role=%s code=%s", child.name, code)
        else:
            log.warning("died role=%s code=%s", child.name, code)
        if not child.is_wanted:
            if child in self._leaving:
                self._leaving.remove(child)
                self._write_run()
            self._next_stop_stage()
            return
        if code == EXIT_START and not self._is_serving:  # it has said why; another try would say the same
            self._exit_code = EXIT_START
            return
        child.plan_restart()
        self._write_run()
        if not self._is_serving and child.failures >= START_TRIES:
            log.error("giving up: %s died %d times before the server was ready", child.name, child.failures)
            self._exit_code = EXIT_CRASH

    # ---- signals -------------------------------------------------------------------------------

    def _handle_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if self._is_stopping and time.monotonic() - self._stop_started < SAME_SIGNAL_S:
                return
            if self._is_stopping:
                log.warning("second signal: leaving at once, the journal keeps the rest")
                self._finish()
            else:
                self._stop()
        elif number == signal.SIGHUP and self._is_serving and not self._is_stopping:
            log.info("rolling restart of %d workers", len(self._workers))
            self._rolling.extend(child for child in self._workers if child not in self._rolling)
            self._roll_next()
        elif number == signal.SIGTTIN and self._is_serving and not self._is_stopping:
            self._add_worker()
        elif number == signal.SIGTTOU and self._is_serving and not self._is_stopping:
            self._remove_worker()

    def _add_worker(self) -> None:
        """Start one worker more, in the next slot."""
        slot = len(self._workers)
        is_leaving = any(child.name == f"worker-{slot}" for child in self._leaving)
        if slot == len(self._shared.listeners) or is_leaving:
            log.warning("no free worker slot workers=%d", slot)
            return
        if self._words[layout.LISTENERS] == slot:
            self._shared.listeners[slot].listen(BACKLOG)
            self._words[layout.LISTENERS] = slot + 1
        self._workers.append(self._worker(slot))
        self._words[layout.WORKERS] = slot + 1
        self._start(self._workers[-1])

    def _remove_worker(self) -> None:
        """Let the last worker go; another one serves its listening socket from then on."""
        if len(self._workers) == 1:
            log.warning("the last worker stays")
            return
        child = self._workers.pop()
        self._words[layout.WORKERS] = len(self._workers)
        if child in self._rolling:
            self._rolling.remove(child)
        if child.pid:
            self._leaving.append(child)
        child.dismiss()

    def _roll_next(self) -> None:
        """Replace the next worker of a rolling restart, once all the others serve."""
        if self._rolling and not self._is_stopping and all(child.is_ready for child in self._workers):
            child = self._rolling.pop(0)
            child.failures = 0
            child.tell_to_leave()

    # ---- stopping ------------------------------------------------------------------------------

    def _stop(self) -> None:
        log.info("stopping")
        self._is_stopping = True
        self._stop_started = time.monotonic()
        self._rows_before = self._rows_written()
        self._stop_stage = [[*self._workers, *self._leaving], [self._persister], [self._manager, *self._writers]]
        if not self._is_serving:  # nothing new was acknowledged, the databases are as they were
            self._stop_stage = [self._children]
        self._begin_stop_stage(DRAIN_S)

    def _begin_stop_stage(self, limit_s: float) -> None:
        self._deadline = time.monotonic() + limit_s
        for child in self._stop_stage[0]:
            child.dismiss()
        self._next_stop_stage()

    def _next_stop_stage(self) -> None:
        """Go on once all children of this stage have gone."""
        if not self._is_stopping or any(child.process is not None for child in self._stop_stage[0]):
            return
        self._stop_stage.pop(0)
        if not self._stop_stage:
            self._finish()
        else:
            limit_s = LATE_LEAVE_S if self._is_late else LEAVE_S
            self._begin_stop_stage(self._config.stop_timeout_s if self._stop_stage[0] == [self._persister] else limit_s)

    def _miss_deadline(self) -> None:
        """Kill what did not leave in time and go on; nothing is lost, the journal has it."""
        self._deadline = NEVER
        self._is_late = True
        for child in self._stop_stage[0]:
            if child.process is not None:
                log.warning("killed after its time to leave role=%s", child.name)
                child.process.kill()

    def _finish(self) -> None:
        """Say truthfully what was flushed, and set the exit code."""
        self._kill_all()
        checkpoints = [self._words[layout.CHECKPOINT + kind] for kind in PERSISTED_KINDS]
        rows_left: int | str = "unknown"  # the journal was not replayed
        if self._words[layout.TABLE_STATE] == layout.TABLE_SERVING:
            rows_left = len(TableReader(self._shared.segment).changed_slots(checkpoints))
        rows = self._rows_written() - self._rows_before
        seconds = time.monotonic() - self._stop_started
        published_seq = self._words[layout.PUBLISHED_SEQ]
        print(
            f"stopped last_seq={published_seq} rows_flushed={rows} rows_left_in_journal={rows_left}"
            f" seconds={seconds:.2f}",
            flush=True,
        )
        self._exit_code = EXIT_UNFLUSHED if rows_left else EXIT_OK

    def _rows_written(self) -> int:
        blocks = [counters_block(self._shared.segment, child.block) for child in self._writers]
        return sum(block[counters.WRITER_ROWS] for block in blocks)

    def _kill_all(self) -> None:
        for child in self._children:
            child.kill()

    def _close(self) -> None:
        self._words.release()
        self._counters.release()
        self._selector.close()
        self._shared.close()


def _raise_descriptor_limit() -> None:
    """A worker needs a descriptor per connection: use all that the system allows."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


