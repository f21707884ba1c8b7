#!/bin/sh
# Run by `make demo`. Prints each command as you would type it, then runs it.
set -eu
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1
unset GRIT_MODEL

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

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Without --model these use the built-in grit-tiny, offline. The first command prints a note about it.
grit embed README.md --output "$folder/vectors.npy"
grit search "what makes dough get bigger?" scripts/demo.txt --top 1 --quiet
grit similarity "The cat sat on the mat." "A kitten lay on the rug." --quiet
grit rag index scripts/demo.jsonl --store "$folder/store" --quiet
grit rag ask "what stops a boat from tipping over?" --store "$folder/store" --quiet
