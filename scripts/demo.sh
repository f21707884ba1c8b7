#!/bin/sh
# What `make demo` runs. Each command is printed as one would type it.
set -eu
cd "$(dirname "$0")/.."
model=../shared/models/stories260k

grit() {
    printf '\n$ grit'
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./=-]*) printf ' "%s"' "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    .venv/bin/grit "$@"
}

if [ -d "$model" ]; then
    grit embed README.md --model "$model"
    grit search "how do I run the tests" README.md --model "$model" --top 3
    grit similarity "The cat sat on the mat." "A kitten lay on the rug." --model "$model"
    grit generate "Once upon a time" --model "$model" --max-tokens 40
else
    echo "The demonstration model, the folder $model, is not here, so this shows only the help and a check of this machine."
    grit --help
    grit doctor
fi
