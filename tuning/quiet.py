"""What variants cost, measured when nothing trains: one after the other, each in a process of its own.

Measured within a trial, times are those of a machine on which other trials run, too. So every variant is
exported and measured again at the end. Interrupted, it goes on with the next variant.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from trainables.trial import Metrics, resolve_trainable
from tuning.children import FOLDER
from tuning.choosing.shipping import ship
from tuning.render import number
from tuning.variants import Variants

#: Measured figures that are worth telling while it goes on.
TOLD = ("size_mb", "macs", "latency_ms", "latency_ratio")


def measure_all(variants: Variants, folder: Path, trainable: str, say: Callable[[str], None]) -> list[str]:
    """Export and measure what was not measured yet; Ray is connected and its gangs are gone.

    Args:
        variants: the table; has every figure as soon as it is known.
        folder: the parents' experiment's.
        trainable: its name, as in the experiment.
        say: told a line for each.

    Returns:
        A line for each that could not be exported or measured.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=1)(ship_and_measure)
    todo, failures = variants.unmeasured(), []
    for place, row in enumerate(todo, 1):
        name, exported = row["variant_id"], f"{FOLDER}/exported/{row['variant_id']}"
        asked = f" {row['ratio_asked']:g}" if row.get("ratio_asked") is not None else ""
        what = f"measured {place} of {len(todo)}: {name}, {row['methods']}{asked} of {row['parent']}"
        waiting = task.remote(trainable, folder / row["checkpoint"], folder / exported)
        try:
            costs = ray.get(waiting)
        except ray.exceptions.RayError as error:  # the trainable's own code: the others go on
            reason = str(error).strip().splitlines()[-1]
            failures.append(f"{name}: {reason}")
            variants.failed(name, traceback.format_exc())
            say(f"not {what}: {reason}")
            continue
        except KeyboardInterrupt:  # only then: to cancel a task that has just ended crashes Ray
            ray.cancel(waiting, force=True)
            raise
        variants.measured(name, costs, exported, datetime.now(UTC))
        say(what + "".join(f"  {each} {number(costs[each])}" for each in TOLD if each in costs))
    return failures


def ship_and_measure(trainable: str, checkpoint: Path, folder: Path) -> Metrics:
    """Export a checkpoint into `folder`, whole or not at all; returns what the trainable measures there."""
    from trainables.gang import figures

    ship(trainable, checkpoint, folder)
    measure = getattr(resolve_trainable(trainable), "measure", None)
    return {} if measure is None else figures("measure", measure(folder))
