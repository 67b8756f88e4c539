"""What variants cost, measured when nothing trains: one after the other, each in a process of its own.

Measured within a trial, times are those of a machine on which other trials run, too. So every variant is
exported and measured again at the end. Interrupted, it goes on with the next variant.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from trainables.checkpoint_files import checkpoint_at
from trainables.figures import figures
from trainables.patience import StorageFailed
from trainables.scratch import scratch_folder
from trainables.store import is_url, under
from trainables.trial import Metrics, resolve_trainable
from tuning.children import FOLDER
from tuning.choosing.shipping import ship
from tuning.render import number
from tuning.variants import Variants

#: Measured figures that are worth telling while it goes on.
TOLD = ("size_mb", "macs", "latency_ms", "latency_ratio")


def measure_all(variants: Variants, place: str, trainable: str, say: Callable[[str], None]) -> list[str]:
    """Export and measure what was not measured yet; Ray is connected and its gangs are gone.

    Args:
        variants: the table; has every figure as soon as it is known.
        place: the parents' experiment, a folder or a URL; in a folder, what was measured is kept.
        trainable: its name, as in the experiment.
        say: told a line for each.

    Returns:
        A line for each that could not be exported or measured.

    Raises:
        StorageFailed: the place is away; what was measured is in the table.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=1)(ship_and_measure)
    todo, failures = variants.unmeasured(), []
    for count, row in enumerate(todo, 1):
        name = row["variant_id"]
        exported = None if is_url(place) else f"{FOLDER}/exported/{name}"
        asked = f" {row['ratio_asked']:g}" if row.get("ratio_asked") is not None else ""
        what = f"measured {count} of {len(todo)}: {name}, {row['methods']}{asked} of {row['parent']}"
        waiting = task.remote(
            trainable, under(place, row["checkpoint"]), Path(place, exported) if exported else None
        )
        try:
            costs = ray.get(waiting)
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), StorageFailed):
                raise cause from error
            # The trainable's own code: the others go on.
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


def ship_and_measure(trainable: str, checkpoint: str, folder: Path | None) -> Metrics:
    """Export the checkpoint at a place into `folder`, whole or not at all; None: only for the time being.

    Returns:
        What the trainable measures there.
    """
    if folder is None:
        with scratch_folder() as scratch:
            return ship_and_measure(trainable, checkpoint, Path(scratch, "exported"))
    measure = getattr(resolve_trainable(trainable), "measure", None)
    with checkpoint_at(checkpoint) as saved:
        ship(trainable, saved, folder)
        return {} if measure is None else figures("measure", measure(folder))
