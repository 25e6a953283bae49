"""What the Tab key offers in bash, zsh and fish: commands, settings, their values, names of runs. Torch-free."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.config.command_line import ENGINES, TYPED_GROUPS, Command, choices_in, split_word
from trainer.config.loggers import LOGGERS, Loggers
from trainer.config.options import TYPED, any_default, choices_of, defaults_of, group_choices, run_settings
from trainer.config.ranges import AUGMENTS, RANGES, Either, OneOf, Rule, Steps, as_yaml
from trainer.config.roles import USED, row_for
from trainer.config.verbs import EXPORT_TO, FOLDERS, OF_RUNS, VERBS, WITH_DATA
from trainer.run.directory import all_runs
from trainer.utils.errors import ConfigError, TrainerError, close_to, did_you_mean, listed

# Each asks `main.py completion line "<the command line up to the cursor>"`, a word on each line of the answer; what the
# program knows no word for is completed as a file. A word that is whole ends in a space. Bash takes = and : as the ends
# of words, so that what is typed in front of them is cut off there again.
BASH = """\
_trainer_complete() {
    local cur=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT} word head
    [[ $cur == [=:] ]] && cur=
    COMPREPLY=()
    [[ ${COMP_WORDS[1]} == *main.py ]] || return
    head=${line##*[[:space:]]}
    head=${head%"$cur"}
    while IFS= read -r word; do
        COMPREPLY+=("${word#"$head"}")
    done < <("${COMP_WORDS[0]}" "${COMP_WORDS[1]}" completion line "$line" 2>/dev/null)
}
complete -o default -o nospace -F _trainer_complete python python3 python3.11 python3.12 python3.13
"""
ZSH = """\
_trainer_before=${_comps[python]:-_default}
_trainer_complete() {
    local -a found
    [[ $words[2] == *main.py ]] || { $_trainer_before "$@"; return }
    found=(${(f)"$($words[1] $words[2] completion line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    if (( $#found )); then
        compadd -Q -S '' -- $found
    else
        compset -P '*='
        _files
    fi
}
compdef _trainer_complete python python3 python3.11 python3.12 python3.13
"""
FISH = """\
function _trainer_complete
    set -l words (commandline -opc)
    set -l found (command $words[1] $words[2] completion line (commandline -cp) 2>/dev/null | string trim -r)
    if set -q found[1]
        printf '%s\\n' $found
    else
        set -l head (string match -r '^[^=]*=' -- (commandline -ct))
        printf '%s\\n' $head(__fish_complete_path (string replace -r '^[^=]*=' '' -- (commandline -ct)))
    end
end
for python in python python3 python3.11 python3.12 python3.13
    complete -c $python -f -n 'string match -q -- "*main.py" (commandline -opc)[2]' -a '(_trainer_complete)'
end
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
HOW = """\
Type one of these, and put it into the file in brackets for the terminals to come:
bash:  source <({main} completion bash)       (~/.bashrc)
zsh:   source <({main} completion zsh)        (~/.zshrc, below compinit)
fish:  {main} completion fish | source        (~/.config/fish/config.fish)"""
OF_A_RUN = ("checkpoint", "init_from", "resume")  # settings that take the name of a run


def completion_for(args: Sequence[str]) -> str | None:
    """What `completion ...` prints; None for another command line.

    Raises:
        ConfigError: the shell is none of bash, zsh and fish.
    """
    if args[:1] != ["completion"] or {"-h", "--help"} & set(args):
        return None
    if args[1:2] == ["line"] and len(args) == 3:
        try:
            return "\n".join(offered(args[2]))
        except TrainerError:  # a line that would be refused: nothing is offered
            return ""
    if args[1:] and (len(args) > 2 or args[1] not in SHELLS):
        hint = did_you_mean([f"completion {name}" for name in close_to(args[1], SHELLS)])
        raise ConfigError(f"{' '.join(args)}: completion takes one of {listed(tuple(SHELLS))}.{hint}")
    main = shlex.join([sys.executable, os.path.abspath(sys.argv[0])])  # for a file that is read in any folder
    return SHELLS[args[1]].rstrip("\n") if args[1:] else HOW.format(main=main)


def offered(line: str) -> list[str]:
    """The words that could stand where a command line ends; those that are whole end in a space.

    Args:
        line: up to the cursor, as typed: `python main.py eval clo`.
    """
    try:
        words = shlex.split(line) + ([""] if line[-1:].isspace() else [])
    except ValueError:  # within quotes
        return []
    start = next((i for i, word in enumerate(words) if Path(word).name == "main.py"), len(words))
    *before, word = words[start + 1 :] or [""]
    return (
        sorted({found for found in words_after(before, word) if found.startswith(word)}) if start < len(words) else []
    )


def words_after(before: Sequence[str], word: str) -> Iterable[str]:
    """What could follow some words, whatever the beginning of the next one; its values where it is `key=...`."""
    verb = before[0] if before and before[0] in (*VERBS, "help") else "train"
    typed = {key: value for key, value in map(split_word, before) if value}
    plain = [each for each in before[1:] if "=" not in each and not each.startswith("-")]
    outputs = Path(Command(verb, tuple(before)).folders["outputs"])
    key, is_setting, value = word.partition("=")
    if is_setting:
        done = value[: max(value.rfind(","), value.rfind("[")) + 1]  # of a list
        end = "" if "[" in value else " "
        return [f"{key}={done}{each}{end}" for each in values_of(key, verb, typed, outputs)]
    if verb == "help":
        return as_whole([*VERBS, *TYPED_GROUPS, *run_settings()])
    if verb == "completion":
        return as_whole(() if plain else SHELLS)
    if verb == "data" and len(plain) < 2:
        return as_whole(choices_of("data") if plain else WITH_DATA)
    settings = folded([name for name in settings_for(verb, before, typed) if name not in typed], word, "=")
    if verb in OF_RUNS:
        takes = OF_RUNS[verb]
        return [*settings, *as_whole(takes.flags), *(runs(outputs, word) if len(plain) < takes.most else ())]
    if verb in ("eval", "predict"):
        return [*settings, *(() if plain or "checkpoint" in typed else runs(outputs, word))]
    return [*settings, *as_whole(["-m"] if verb == "train" else []), *as_whole(() if before else [*VERBS, "help"])]


def settings_for(verb: str, before: Sequence[str], typed: Mapping[str, str]) -> list[str]:
    """The settings that a command uses, under the choices that were typed."""
    if verb in OF_RUNS:
        takes = OF_RUNS[verb]
        return [*takes.keys, *takes.settings, *FOLDERS]
    use = "summary" if verb == "data" else verb
    if verb == "train":
        use = "sweep" if {"-m", "--multirun"} & set(before) else "resume" if "resume" in typed else "train"
    every = {*defaults_of(group_choices(choices_in(before))), *TYPED, *ENGINES} - {
        "ensemble"
    }  # checkpoint=[a,b] sets it
    return [key for key in every if (row := row_for(key)) is not None and row.verdicts[use] == USED]


def folded(keys: Iterable[str], word: str, end: str) -> list[str]:
    """The keys that begin with a word, up to the next dot: `optimizer.` stands for all of its options."""
    found = [key for key in keys if key.startswith(word)]
    cut = [key.find(".", len(word)) for key in found]
    return [key[: at + 1] if at >= 0 else f"{key}{end}" for key, at in zip(found, cut, strict=True)]


def values_of(key: str, verb: str, typed: Mapping[str, str], outputs: Path) -> Iterable[str]:
    """The values of a setting where they are a few words, or the names of runs; else none."""
    if key in (*TYPED_GROUPS, *ENGINES):
        return choices_of(key)
    if key in OF_A_RUN:
        return [name.rstrip() for name in runs(outputs, "")]
    if key == "format" and verb == "export":
        return EXPORT_TO
    if key == "recipe":
        return ["none"]
    is_switch = isinstance(any_default(key), bool)
    return words_in(RANGES.get(key) or OneOf((True, False))) if key in RANGES or is_switch else ()


def words_in(rule: Rule) -> tuple[str, ...]:
    """The words that a rule allows."""
    if isinstance(rule, Either):
        return words_in(rule.first) + words_in(rule.second)
    if isinstance(rule, Steps):
        return AUGMENTS
    if isinstance(rule, Loggers):
        return LOGGERS
    return tuple(map(as_yaml, rule.words)) if isinstance(rule, OneOf) else ()


def runs(outputs: Path, word: str) -> list[str]:
    """The names of runs and sweeps; the jobs of a sweep once its name and a slash are typed, RUN:best after a colon."""
    name, colon, _ = word.partition(":")
    if colon:
        return as_whole([f"{name}:best", f"{name}:last"])
    names = [path.parent.relative_to(outputs).as_posix() for path in all_runs(outputs)]
    sweeps = {name.partition("/")[0] for name in names if "/" in name}
    return [*as_whole(name for name in names if "/" not in name or "/" in word), *sweeps, *as_whole(["last"])]


def as_whole(words: Iterable[str]) -> list[str]:
    """Words that are whole."""
    return [f"{word} " for word in words]
