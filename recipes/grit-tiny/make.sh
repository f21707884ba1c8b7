#!/bin/sh
# Makes grit-tiny again, from ../shared/data/train to the folder in the package. About two hours on two cores.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
recipe=recipes/grit-tiny

"$python" $recipe/make_tokenizer.py
"$python" $recipe/teacher.py tokens
"$python" $recipe/teacher.py texts
# First the pairs alone, then also bits of passages and the teacher's similarities.
"$python" $recipe/bags.py --name pairs --rows 12000 --steps 800 --spans 0 --distillation 0
"$python" $recipe/bags.py --name bags --start pairs --steps 700 --rate 1.5e-3 --spans 0.3
"$python" $recipe/make_data.py
"$python" $recipe/write_model.py
grit() {
    "$python" -c 'from grit_mlx.cli.main import main; main()' "$@"
}
grit train --config $recipe/train.yaml
"$python" $recipe/finish.py runs/grit-tiny/run/checkpoints/step-00000575 runs/grit-tiny/final --layers 0.8
grit convert runs/grit-tiny/final -o runs/grit-tiny/grit-tiny -q --q-bits 6 --quant-predicate uniform
cp $recipe/CARD.md runs/grit-tiny/grit-tiny/README.md
cp runs/grit-tiny/grit-tiny/* grit_mlx/models/grit-tiny
grit eval ../shared/data/dev --model runs/grit-tiny/grit-tiny --bm25 --hybrid
