"""Which gangs an experiment has, which of them work, and whose they are: decisions, pure, without Ray.

A gang is lent to a trial only while it has room on the cluster, if need be while its workers still start. One
that waits for room waits without a trial. How many there may be changes while the run goes on; one too many
leaves as soon as no trial has it.
"""

from __future__ import annotations

from tuning.gangs.mailbox import GangState


class Roster:
    """The gangs by name."""

    def __init__(self) -> None:
        self._states: dict[str, GangState] = {}  # by name, the oldest first
        self._lent: dict[str, str] = {}  # gang -> run_id
        self._on_trial: dict[str, str] = {}  # gang -> trial to be tried on another first
        self._allowed = 0
        self._closed = 0  # gangs that failed again and again; nothing takes the place of these
        self._most = 0  # that ever were allowed
        self._missed = True  # whether a trial could have used a further gang, since the last `resize`
        self.all_in_use = True
        """Whether a trial found no free gang between the last two calls of `resize`."""

    def add(self, name: str) -> None:
        """A gang was started."""
        self._states[name] = "waiting"

    def hear(self, name: str, state: GangState) -> None:
        """What the owner of a gang says of it."""
        if name in self._states:
            self._states[name] = state

    @property
    def serving(self) -> int:
        """Gangs whose workers are there."""
        return sum(state == "serving" for state in self._states.values())

    @property
    def complete(self) -> bool:
        """Whether as many gangs serve as there may be."""
        return self.serving >= self._allowed

    @property
    def placed(self) -> bool:
        """Whether any gang has room on the cluster."""
        return any(state != "waiting" for state in self._states.values())

    @property
    def lent(self) -> bool:
        """Whether a trial has a gang."""
        return bool(self._lent)

    @property
    def any_free(self) -> bool:
        """Whether `lend` would find a gang; where not, one more is of use."""
        free = len(self._lent) < self._allowed and bool(self._free())
        self._missed = self._missed or not free
        return free

    @property
    def none_left(self) -> bool:
        """Whether all gangs were closed."""
        return self._closed > 0 and not self._states

    def lend(self, run_id: str, trial_id: str) -> str:
        """Give a free gang to `run_id`, of `trial_id`; its name."""
        name = min(self._free(), key=lambda name: self._states[name] != "serving")
        self._lent[name] = run_id
        self._on_trial = {gang: left for gang, left in self._on_trial.items() if left != trial_id}
        return name

    def suspect(self, name: str, trial_id: str) -> None:
        """Workers died under `trial_id` again and again: it is to be tried on another gang first."""
        self._on_trial[name] = trial_id

    def close(self, name: str) -> None:
        """A gang fails whatever trial it has: it is forgotten, and no other takes its place."""
        del self._states[name]
        self._lent.pop(name, None)
        self._on_trial.pop(name, None)
        self._closed += 1

    def take_back(self, run_id: str) -> str | None:
        """The gang that `run_id` had is free again; its name, or None where it had none."""
        for name, borrower in self._lent.items():
            if borrower == run_id:
                del self._lent[name]
                return name
        return None

    def resize(self, allowed: int) -> tuple[int, list[str]]:
        """So many gangs may there be from now on.

        Returns:
            How many to start, and the names of those that are to end now and are forgotten here: first those
            that wait for room, then the youngest. No gang is started while another has nothing to do.
        """
        self._most = max(self._most, allowed)
        # Not one less whenever fewer may be: those that are closed may be the ones that are given up.
        self._allowed = allowed = max(0, min(allowed, self._most - self._closed))
        idle = [name for name in self._states if name not in self._lent][::-1]
        idle.sort(key=lambda name: ("waiting", "starting", "serving").index(self._states[name]))
        ended = idle[: max(0, len(self._states) - allowed)]
        for name in ended:
            del self._states[name]
            self._on_trial.pop(name, None)
        self.all_in_use, self._missed = self._missed or not self._states, False
        return (max(0, allowed - len(self._states)) if self.all_in_use else 0), ended

    def _free(self) -> list[str]:
        """Gangs to be lent. One that a trial left in trouble rests until another gang has that trial."""
        free = [name for name, state in self._states.items() if state != "waiting" and name not in self._lent]
        ready = [name for name in free if name not in self._on_trial]
        return ready or (free if not self._lent else [])
