"""`eval "$(lora-clip completion)"` in ~/.bashrc; in zsh after `autoload -U bashcompinit && bashcompinit`.

Commands, options and files are completed, and for embed the keys and values of the configuration, which Hydra knows.
"""

from __future__ import annotations

import argparse

SCRIPT = r"""_lora_clip() {
    local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} words word options
    read -ra words <<< "$line"
    case $line in *" ") word= ;; *) word=${words[-1]} ;; esac
    if [ "${#words[@]}" -lt 2 ] || { [ "${#words[@]}" = 2 ] && [ -n "$word" ]; }; then
        options="COMMANDS --help --version"
    elif [ "${words[1]}" = embed ]; then
        line="embed ${line#*embed}"
        options=$(COMP_LINE=$line COMP_POINT=${#line} "${words[0]}" embed -sc query=bash 2>/dev/null)
    else
        options=$("${words[0]}" "${words[1]}" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*' | sort -u)
    fi
    COMPREPLY=($(compgen -W "$options" -- "$word"))
    case $word in
        *=*) COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}") ;;  # bash has split the word at the =
    esac
    [ "${#COMPREPLY[@]}" = 1 ] && case ${COMPREPLY[0]} in *[=./]) compopt -o nospace 2>/dev/null ;; esac
    return 0
}
complete -o default -F _lora_clip lora-clip
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(given: argparse.Namespace) -> int:
    """Print what a shell evaluates."""
    from lora_clip.app.command import COMMANDS

    print(SCRIPT.replace("COMMANDS", " ".join(COMMANDS)), end="")
    return 0
