"""A gang's Ray Train run: who loads torch for it. That its workers find each other, real trials show."""

import subprocess
import sys


def test_a_gangs_owner_and_controller_start_without_torch():
    """What they import by themselves, and what they unpickle: functions and classes by their names."""
    program = (
        "import pickle, sys\n"
        "import tuning.gangs.owner, tuning.gangs.obituary\n"
        "from trainables.gang_trainer import ProcessGroupConfig, serve\n"
        "pickle.loads(pickle.dumps((serve, ProcessGroupConfig(), ProcessGroupConfig().train_func_context)))\n"
        "print(sorted({'torch', 'optuna'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "[]\n", ran.stderr
