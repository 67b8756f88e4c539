"""What a person sees while an experiment runs: a live panel in a terminal, plain lines elsewhere.

Follows the events and nothing else; time comes from the `clock` passed in, output goes to the `console`.
A trial counts as done when it is over or paused: under promoting ASHA most trials end a run paused.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuning.events import FINAL_STATES, EpochReported, Event, GangClosed, TrialEnded, TrialStarted
from tuning.forecast import Forecast
from tuning.render import STATE_STYLE, about, config_text, count, duration, number, state_counts
from tuning.search.budget import HOUR_S
from tuning.tables.comparison import WENT_WRONG, Row
from tuning.tables.fidelity import agreement, in_short
from tuning.tables.ledger import Ledger
from tuning.tables.schema import figure_column

if TYPE_CHECKING:
    from tuning.experiment import Experiment

#: Running trials that the panel has room for.
SHOWN = 8
#: What writing to a terminal or a pipe that is gone raises; the latter is rich's answer to a closed pipe.
UNSEEN = (OSError, SystemExit)
#: Seconds between two drawings of the panel.
REDRAW_S = 0.25


class Progress:
    """Shows trials by state, the best so far, what is spent, the time left, and a line for each trial that
    ends or pauses. No run ends because nobody can see it any more: what cannot be written is left out.

    Args:
        experiment: what runs; where its folder has tables, the display goes on from them.
        console: where to; a terminal gets the panel, anything else plain lines.
        clock: seconds that only grow.
        heartbeat_s: without a terminal, at most one line of summary in this time.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_s: float = 30.0,
    ):
        self._experiment = experiment
        self._objectives = [figure_column(each.metric) for each in experiment.objectives]
        self._console = console or Console(markup=False)
        self._terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock, self._heartbeat_s = clock, heartbeat_s
        self._ledger = Ledger(experiment)
        self._ledger.take_up(experiment.folder)
        for row in self._ledger.trials.values():
            if row["state"] == "running":  # before the interruption; it runs again when it is started again
                row["state"] = "paused"
        self._forecast = Forecast(experiment, self._ledger, clock=clock)
        self._levels = sorted(experiment.full_epochs())
        self._fidelity = self._ranks_the_end()
        self._start: float | None = None  # set at the first sign of life: data is prepared before
        self._last_heartbeat = -float("inf")
        self._last_drawn = -float("inf")
        self._since: dict[str, float] = {}  # when each running trial was started
        self._chosen = ""  # the trial that started last, and why
        self._live: Live | None = None
        self._closed = False

    def handle(self, event: Event) -> None:
        """Take the event in; print a line if a trial ended or paused."""
        self._begin()
        if isinstance(event, GangClosed):
            stamp = f"{duration(self._elapsed()):>7}  "
            self._show(Text.assemble((stamp, "dim"), (f"✗ {event.gang} closed: {event.reason}", "red")))
            return
        before, now = self._ledger.best(), self._clock()
        self._ledger.apply(event)
        self._forecast.handle(event)
        best = self._ledger.best()
        if isinstance(event, EpochReported) and event.epoch == self._levels[-1]:
            self._fidelity = self._ranks_the_end()
        if isinstance(event, TrialStarted):
            self._since[event.trial_id] = now
            self._chosen = self._chosen_text(event)
            if not self._terminal:
                self._show(Text.assemble((f"{duration(self._elapsed()):>7}  ▸ {self._chosen}", "dim")))
        elif isinstance(event, TrialEnded):
            took = now - self._since.pop(event.trial_id, now)
            self._show(self._ended_line(self._ledger.trials[event.trial_id], took))
        elif best is not None and best is not before and not self._terminal:
            self._show(self._best_line(best))
        self.tick()

    def tick(self) -> None:
        """Redraw the panel, or print a summary line where there is no terminal, if it is time."""
        if self._closed:
            return
        self._begin()
        now = self._clock()
        if not self._terminal:
            if now - self._last_heartbeat >= self._heartbeat_s:
                self._last_heartbeat = now
                self._show(self._summary_line())
        elif now - self._last_drawn >= REDRAW_S:
            self._last_drawn = now
            try:
                if self._live is None:
                    # Drawn by `tick` alone: a thread of rich's own would read rows while they change.
                    self._live = Live(console=self._console, auto_refresh=False, transient=True)
                    self._live.start()
                self._live.update(self.panel(), refresh=True)
            except UNSEEN:
                self._closed = True  # half drawn, it cannot be taken up again

    def close(self) -> None:
        """Take the panel away and leave one line of summary."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            with contextlib.suppress(*UNSEEN):
                self._live.stop()
        if self._start is not None:
            self._show(self._summary_line())

    def panel(self) -> RenderableType:
        """The panel as of now."""
        budget, finished, best = self._experiment.budget, self._finished(), self._ledger.best()
        counts = Table.grid(padding=(0, 2))
        if budget.trials is not None:
            counts.add_row(
                ProgressBar(total=budget.trials, completed=finished, width=24),
                Text(f"{finished} of {budget.trials} trials done", style="bold"),
                self._states(),
            )
        else:
            counts.add_row(Text(f"{finished} trials done", style="bold"), self._states())
        parts: list[RenderableType] = [counts]
        if spent := self._spent():
            parts.append(Text(f"spent {', '.join(spent)}"))
        parts.append(Text())
        if best:
            parts.append(Text.assemble(("best  ", "bold green"), *self._figure(best)))
            parts.append(Text(f"      {config_text(best)}", style="dim"))
        else:
            parts.append(Text(f"best  no {' and '.join(self._objectives)} yet", style="dim"))
        if len(self._objectives) > 1:
            parts.append(Text.assemble(("front ", "bold green"), self._front_text()))
        if self._fidelity:
            parts.append(Text(f"      {self._fidelity}", style="dim"))
        if self._since:
            parts += [Text(), self._running()]
            parts.append(Text(f"last  {self._chosen}", style="dim", overflow="ellipsis", no_wrap=True))
        times = f"{duration(self._elapsed())} elapsed"
        left = self._forecast.time_left(self._elapsed())
        times += f" · about {about(left)} left" if left is not None else ""
        return Panel(
            Group(*parts),
            title=Text(f" {self._experiment.name} ", style="bold"),
            title_align="left",
            subtitle=Text(f" {times} "),
            subtitle_align="right",
            border_style="cyan",
            padding=(0, 1),
        )

    def _begin(self) -> None:
        if self._start is None:
            self._start = self._last_heartbeat = self._clock()

    def _elapsed(self) -> float:
        return 0.0 if self._start is None else self._clock() - self._start

    def _finished(self) -> int:
        done = FINAL_STATES | {"paused"}
        return sum(row["state"] in done for row in self._ledger.trials.values())

    def _spent(self) -> list[str]:
        """What is spent of each limit that epochs are counted against, `45 of 200 epochs`."""
        limits, spent = self._experiment.budget, self._forecast.spent
        parts = []
        if limits.epochs is not None:
            parts.append(f"{spent.epochs} of {limits.epochs} epochs")
        if limits.worker_hours is not None:
            parts.append(f"{number(spent.worker_s / HOUR_S)} of {limits.worker_hours:g} worker-hours")
        if spent.cost is not None:
            most = "" if limits.money is None else f" of {limits.money:g}"
            parts.append(f"{number(spent.cost)}{most} in money")
        return parts

    def _front_text(self) -> str:
        size, volume = self._ledger.front_size(), number(self._ledger.hypervolume)
        return f"{count(size, 'trial')}, hypervolume {volume}"

    def _ranks_the_end(self) -> str:
        """How well rungs rank the trials that came to the last epoch, in short; empty while unknown."""
        *_, last = self._levels
        ended = (done for done in self._ledger.epochs.values() if last in done)
        rows = (done[epoch] for done in ended for epoch in self._levels if epoch in done)
        return in_short(agreement(rows, self._experiment.objectives, self._levels))

    def _chosen_text(self, event: TrialStarted) -> str:
        done = self._ledger.trials[event.trial_id]["epochs"]
        what = f"goes on after epoch {done}" if done > event.parent_epoch else "starts"
        return f"{event.trial_id} {what}" + (f": {event.why}" if event.why else "")

    def _objectives_text(self, row: Row, width: int = 0) -> str:
        return "  ".join(f"{name} {number(row.get(name)):<{width}}" for name in self._objectives)

    def _states(self) -> Text:
        return state_counts(row["state"] for row in self._ledger.trials.values())

    def _running(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan")
        most = self._experiment.scheduler.max_epochs
        for trial_id, since in list(self._since.items())[:SHOWN]:
            row = self._ledger.trials[trial_id]
            table.add_row(
                trial_id,
                f"epoch {row['epochs']}/{most}",
                self._objectives_text(row),
                duration(self._clock() - since),
                Text(config_text(row), style="dim", overflow="ellipsis", no_wrap=True),
            )
        if len(self._since) > SHOWN:
            table.add_row("", f"and {len(self._since) - SHOWN} more")
        return table

    def _figure(self, row: Row) -> list[str | tuple[str, str]]:
        parts: list[str | tuple[str, str]] = [
            (self._objectives_text(row), "bold"),
            f"  trial {row['trial_id']}, epoch {row.get('best_epoch')}",
        ]
        if self._ledger.comparison.violation(row):
            parts.append(("  outside the constraints", "yellow"))
        return parts

    def _ended_line(self, row: Row, took: float) -> Text:
        state = row["state"]
        sign = "✓" if state == "completed" else "✗" if state in WENT_WRONG else "·"
        line = Text.assemble(
            (f"{duration(self._elapsed()):>7}  ", "dim"),
            (f"{sign} {row['trial_id']} {state.replace('_', ' '):<9}", STATE_STYLE[state]),
            f"  {self._objectives_text(row, width=7)}",
            f"  {row['epochs']} epoch{'s' if row['epochs'] != 1 else ' '}",
            f"  {duration(took):>6}",
        )
        if self._ledger.best() is row:
            line.append("  ★ best so far", style="bold green")
        if len(self._objectives) > 1:
            line.append(f"  hypervolume {number(self._ledger.hypervolume)}")
        if state != "completed":
            line.append(f"  ({row['reason']})", style="red" if state in WENT_WRONG else "dim")
        if state == "paused":  # most trials pause several times
            return line
        # Last, as a terminal cuts the line where it is full.
        return line.append(f"  {config_text(row)}", style="dim")

    def _best_line(self, row: Row) -> Text:
        stamp = f"{duration(self._elapsed()):>7}  "
        return Text.assemble(stamp, "★ best so far: ", *self._figure(row))

    def _summary_line(self) -> Text:
        finished, trials = self._finished(), self._experiment.budget.trials
        done = f"{finished} of {trials} trials done" if trials is not None else f"{finished} trials done"
        line = Text(f"{duration(self._elapsed()):>7}  {done} ({self._states().plain})")
        line.append("".join(f", {part}" for part in self._spent()))
        if best := self._ledger.best():
            line.append("; best ").append_text(Text.assemble(*self._figure(best)))
        if len(self._objectives) > 1:
            line.append(f"; front {self._front_text()}")
        if self._fidelity:
            line.append(f"; {self._fidelity}")
        left = None if self._closed else self._forecast.time_left(self._elapsed())
        return line.append(f"; about {about(left)} left" if left is not None else "")

    def _show(self, line: Text) -> None:
        with contextlib.suppress(*UNSEEN):
            if self._terminal:
                self._console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")
            else:  # in a file every event stays on one line, however long: people grep it
                self._console.print(line, highlight=False, soft_wrap=True)
