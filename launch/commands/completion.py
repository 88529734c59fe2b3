"""`transfer completion`: a script that completes commands and options in bash or zsh."""

import argparse

from launch.commands.arguments import argument, command

_SCRIPT = """_transfer() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{names} --help --version"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  if [ "$COMP_CWORD" -eq 1 ] || [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  else
    COMPREPLY=()
  fi
}}
complete -o default -F _transfer transfer"""


@command(
    "print the completion script of a shell",
    argument("shell", choices=("bash", "zsh"), help="the shell that reads the script"),
)
def completion(options: argparse.Namespace) -> int:
    """Print a script that completes commands, options and files. In bash: eval "$(transfer completion bash)"; in zsh:
    eval "$(transfer completion zsh)"; in ~/.bashrc or ~/.zshrc it works in every shell.
    """
    cases = []
    for item in options.commands:
        flags = [name for action in item.arguments for name in action.names if name.startswith("-")]
        cases.append(f'      {item.name}) words="{" ".join(flags)} --help" ;;')
    script = _SCRIPT.format(names=" ".join(item.name for item in options.commands), cases="\n".join(cases))
    if options.shell == "zsh":
        script = f"autoload -U +X compinit bashcompinit\ncompinit -u\nbashcompinit\n{script}"
    print(script)
    return 0
