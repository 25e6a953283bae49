"""The commands that are about runs of before: which function is which."""

from trainer.commands.curves import run_board
from trainer.commands.experiments import run_experiments
from trainer.commands.on_trained import run_bench, run_export
from trainer.commands.remove import run_remove
from trainer.commands.rerun import run_rerun
from trainer.sweep.compare import run_compare
from trainer.sweep.diff import run_diff
from trainer.sweep.report import run_report
from trainer.sweep.runs import run_runs
from trainer.sweep.show import run_show

VERB_OF_RUNS = {
    "compare": run_compare,
    "experiments": run_experiments,
    "runs": run_runs,
    "show": run_show,
    "report": run_report,
    "diff": run_diff,
    "rerun": run_rerun,
    "export": run_export,
    "bench": run_bench,
    "rm": run_remove,
    "board": run_board,
}
