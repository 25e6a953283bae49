"""The train command: machine, begin, parts, epochs, end."""

from collections.abc import MutableMapping
from contextlib import ExitStack

from trainer.config.schema import Config
from trainer.data.splits import Source
from trainer.run.begin import begin, choose_machine, make_parts, open_session, start_recording
from trainer.run.budget import lay_out, without_void
from trainer.run.end import finish_run
from trainer.run.epochs import train_epochs
from trainer.run.failures import explain, note_failure
from trainer.run.session import Reporter, Session
from trainer.run.target import Target
from trainer.utils.errors import Interrupted
from trainer.utils.ranks import join
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal


def train(
    config: Config,
    stop: StopSignal,
    *,
    target: Target | None = None,
    batches: int = 0,
    report: Reporter | None = None,
    screen: Screen | None = None,
    sources: MutableMapping[str, Source] | None = None,
) -> tuple[str, float]:
    """Train a model, from its initial weights or from where an interrupted run stopped.

    Args:
        config: all settings.
        stop: the signals, which end training after the step in hand.
        target: what resume= points at, where it was looked up already.
        batches: of each split that are used; 0: all.
        report: is told the deciding metric after each epoch, and says why training ends there, or nothing.
        screen: where the run is to be seen; None: on a screen of its own.
        sources: see data.load.
    Returns:
        The run's name, and the best value of the deciding metric: validation accuracy, for regression validation loss;
        of training where there is no validation. Of several processes all call this, and all get or raise the same.
    Raises:
        ConfigError, DivergedError, ResourceError, BusyError, Interrupted: see trainer.utils.errors.
    """
    screen, ranks, session = screen or Screen(), join(), None
    with ExitStack() as held:  # the lock and the recorder, closed in the opposite order however this ends
        agreed = held.enter_context(ranks.watching(stop))
        try:
            config, machine = choose_machine(config, ranks, screen)
            config = without_void(config, target, screen)
            config, begun = begin(config, target, ranks, screen, held)
            if begun.finished is not None:
                return begun.name, begun.finished  # nothing was opened or changed
            config = lay_out(config, begun, machine, ranks, screen, sources)
            parts, progress = make_parts(config, begun, machine, ranks, screen, batches=batches, sources=sources)
            session = open_session(config, begun, parts, progress, agreed, screen, held, report)
            start_recording(session, begun, held)
            with screen:  # the progress bar, which must not outlive an error message
                train_epochs(session)
                finish_run(session)
        except BaseException as error:
            raise ended_by(error, config, session) from error.__cause__
        return begun.name, float(ranks.share(progress.best["value"]))


def ended_by(error: BaseException, config: Config, session: Session | None) -> BaseException:
    """What to raise for an error, which is noted in the files of a run that has some."""
    if session is None:
        return error if isinstance(error, Interrupted) else explain(error, config)  # there is nothing to resume yet
    ranks = session.parts.ranks
    told = ranks.known(explain(error, config, session.run))
    if ranks.is_first:
        note_failure(session.run, session.started, told, session.screen)
    return told
