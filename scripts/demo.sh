#!/bin/sh
# Run by `make demo`. Prints each command as you would type it, then runs it.
set -eu
cd "$(dirname "$0")/.."
command=$PWD/.venv/bin/grit
export HF_HUB_OFFLINE=1
unset GRIT_MODEL GRIT_STORE

grit() {
    printf '\n$ grit'
    for word in "$@"; do
        case $word in
            --quiet) ;;
            *[!A-Za-z0-9_./=-]*) printf ' "%s"' "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$command" "$@"
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -R docs examples "$folder"
cd "$folder"

# The built-in grit-tiny, offline. It embeds and does not write: answers are quotes from this project's own pages.
grit similarity "a ship at sea" "a boat on the ocean" "a loaf of bread" --quiet
grit search "what stops a ship from capsizing?" examples/notes/boat.txt --top 1 --quiet
grit rag index docs --quiet
grit rag ask "How do I watch a folder for changes?" --quiet
grit rag ask "How are scanned PDF files handled?" --quiet
grit rag ask "How do I quantise a checkpoint?" --quiet
