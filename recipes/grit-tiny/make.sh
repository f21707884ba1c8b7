#!/bin/sh
# Rebuilds grit-tiny from ../shared/data/train and copies it into the package. About an hour and a half on two cores.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
recipe=recipes/grit-tiny
work=runs/grit-tiny

"$python" $recipe/make_tokenizer.py
"$python" $recipe/teacher.py tokens
"$python" $recipe/teacher.py texts
"$python" $recipe/teacher.py sentences
# First pairs only, then also spans of passages and the teacher's similarities. The mean is better than both.
"$python" $recipe/bags.py --name pairs --rows 12000 --rate 4e-3 --spans 0 --distillation 0
"$python" $recipe/bags.py --name bags --start pairs --rate 2e-3 --spans 0.3
"$python" $recipe/mix.py static=.2 pairs=.4 bags=.4
"$python" $recipe/write_model.py
"$python" $recipe/quantize.py $work/start $work/grit-tiny
cp $recipe/CARD.md $work/grit-tiny/README.md
cp $work/grit-tiny/* grit_mlx/builtin/grit-tiny
"$python" -c 'from grit_mlx.cli.main import main; main()' eval ../shared/data/dev --model $work/grit-tiny --bm25 --hybrid
