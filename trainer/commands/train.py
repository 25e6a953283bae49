"""The train command: machine, begin, parts, epochs, end."""

from collections.abc import MutableMapping
from contextlib import ExitStack

from trainer.config.roles import HOW_FAR
from trainer.config.schema import Config
from trainer.data.splits import Source
from trainer.run import failures
from trainer.run.begin import (
    Opened,
    announce,
    check_processes,
    describe_parts,
    make_directory,
    open_files,
    open_recorder,
    open_run,
    prepare_parts,
    refuse_strangers,
    with_name,
)
from trainer.run.end import finish_run, note_failure
from trainer.run.epochs import Reporter, Session, train_epochs
from trainer.run.machine import resolve_auto
from trainer.utils.ranks import join
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal


def train(
    config: Config,
    stop: StopSignal,
    *,
    batches: int = 0,
    report: Reporter | None = None,
    screen: Screen | None = None,
    sources: MutableMapping[str, Source] | None = None,
) -> float:
    """Train a model, from its initial weights or from where an interrupted run stopped.

    Args:
        batches: of each split that are used; 0: all.
        report: is told the validation metric after each epoch, and says why training ends there, or nothing.
        screen: where the run is to be seen; None: on a screen of its own.
        sources: see data.load.
    Returns:
        The best validation metric: accuracy, for regression loss; of training where there is no validation. Of several
        processes all call this, and all get or raise the same.
    Raises:
        ConfigError, DivergedError, ResourceError, BusyError, Interrupted: see trainer.utils.errors.
    """
    refuse_strangers(config)
    screen, ranks = screen or Screen(), join()
    chosen = [key for key, value in config.device.options.items() if value == "auto"]
    with ExitStack() as held:
        stopped = held.enter_context(ranks.watching(stop))
        with ranks.together():
            config, machine = resolve_auto(config, ranks.local if ranks.world > 1 else None)
            check_processes(config, machine, ranks, screen)
            opened = open_run(config, screen, held) if ranks.is_first else Opened("")
        opened = Opened(**ranks.share(vars(opened)))
        if opened.finished is not None:
            return opened.finished
        run, start = opened.found(config)
        config = with_name(config, run)
        announce(config, machine, chosen, screen)
        parts, progress = prepare_parts(config, run, start, machine, screen, batches, sources, ranks)
        if any(key.startswith(HOW_FAR) for key in opened.changed):
            progress.stopped = ""
        with ranks.together():
            if ranks.is_first and (opened.is_new or not run.outputs.is_dir()):
                held.enter_context(make_directory(run))
            started = open_files(config, run, machine, screen) if ranks.is_first else ""
        try:
            describe_parts(parts, progress, screen, start)
            with ranks.together():
                recorder = open_recorder(run, progress, screen) if ranks.is_first else None
                if recorder is not None:
                    held.callback(recorder.close)
            session = Session(config, parts, progress, run, recorder, screen, stopped, started, report)
            with screen:
                train_epochs(session)
                finish_run(session)
        except BaseException as error:
            told = ranks.known(failures.explain(error, config))
            if ranks.is_first:
                note_failure(run, started, told, screen)
            raise told from error.__cause__
    return float(ranks.share(progress.best["value"]))
