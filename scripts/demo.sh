#!/bin/sh
# What `make demo` runs. Each command is printed as one would type it.
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

# No model is named: these use grit-tiny, which is inside the package, and no network. The first says so.
grit embed README.md --output "$folder/vectors.npy"
grit search "what makes dough get bigger?" scripts/demo.txt --top 1 --quiet
grit similarity "The cat sat on the mat." "A kitten lay on the rug." --quiet
grit rag index scripts/demo.jsonl --store "$folder/store" --quiet
grit rag ask "what stops a boat from tipping over?" --store "$folder/store" --quiet
