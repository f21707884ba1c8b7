#!/bin/sh
# Makes grit-tiny from ../shared/data/train and copies it into the package: five minutes of a large GPU, and as much of
# two cores to measure it. SECONDS_OF_TRAINING and DEVICE may be set.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
recipe=recipes/grit-tiny
work=runs/grit-tiny
grit() { "$python" -c 'from grit_mlx.cli.main import main; main()' "$@"; }

"$python" $recipe/make_texts.py
"$python" $recipe/distil.py --half --seconds "${SECONDS_OF_TRAINING:-280}" ${DEVICE:+--device "$DEVICE"}
"$python" $recipe/write_model.py
"$python" $recipe/quantize.py $work/start $work/grit-tiny
cp $recipe/CARD.md $work/grit-tiny/README.md
cp $work/grit-tiny/* grit_mlx/builtin/grit-tiny
grit eval ../shared/data/dev --model $work/grit-tiny --bm25 --hybrid
"$python" $recipe/kept_apart.py
grit eval $work/kept --model $work/grit-tiny --bm25
