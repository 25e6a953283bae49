"""What --help prints."""

from trainer.config.command_line import TYPED_GROUPS
from trainer.config.options import choices_of
from trainer.utils.errors import listed

HELP = """\
python main.py [train] [group=choice ...] [key=value ...]        train a model (train is the default)
python main.py eval    RUN|PATH [split=test] [...]               measure a trained model
python main.py predict RUN|PATH [FILE|FOLDER]                    label images, or the test split
                       (or by name: eval checkpoint=RUN, predict checkpoint=RUN input=FILE)
python main.py check-resume [group=choice ...] [key=value ...]   does a run like this resume bit for bit?
python main.py compare-impl [group=choice ...] [key=value ...]   one run in each library: curves, times, differences
python main.py -m key=value1,value2 ...                          one run for each combination of values
python main.py [...] seeds=N                                     N runs that differ in the seed: mean, spread, interval
python main.py compare RUN RUN [RUN ...]                         is the first better than the others, or is it chance?
python main.py experiments                                       the books' experiments, with their figures and yours
torchrun --nproc_per_node=N main.py ...                          train with N processes (docs/several-processes.md)

groups
{groups}
settings: configs/*.yaml lists each one with its unit and range; --cfg job prints those of a command.
A pair of data and model brings its own tuned values (configs/recipe); recipe=none leaves them out.

examples
  python main.py                                                 linear regression on synthetic data, in seconds
  python main.py model=mlp data=fashion_mnist optimizer.lr=0.05
  python main.py model=resnet34 data=cifar10 device=cuda name=first
  python main.py resume=first                                    continue after an interruption
  python main.py eval first
  python main.py predict last photos/
  python main.py -m data=mnist model=softmax,mlp optimizer.lr=0.1,0.5
  python main.py -m hydra/launcher=processes hydra.launcher.n_jobs=2 model=mlp data=mnist seed=0,1,2,3
  python main.py -m hydra/sweeper=optuna model=mlp data=mnist optimizer.lr='tag(log, interval(1e-3,1))'
  tensorboard --logdir outputs
"""


def help_text() -> str:
    """The commands, the groups with their choices, and examples."""
    groups = "".join(f"  {group + '=':12} {listed(choices_of(group))}\n" for group in TYPED_GROUPS)
    return HELP.format(groups=groups)
