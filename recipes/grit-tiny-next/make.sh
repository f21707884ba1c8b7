#!/bin/sh
# Makes the next grit-tiny, from ../shared/data/train to runs/grit-tiny-next/grit-tiny. About an hour on two cores.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
recipe=recipes/grit-tiny-next

"$python" $recipe/make_tokenizer.py
"$python" $recipe/teacher.py tokens
"$python" $recipe/teacher.py texts
# First the pairs alone, then also bits of passages and the teacher's similarities; the mean is better than both.
"$python" $recipe/bags.py --name pairs --rows 12000 --rate 4e-3 --spans 0 --distillation 0
"$python" $recipe/bags.py --name bags --start pairs --rate 2e-3 --spans 0.3
"$python" $recipe/mix.py static=.2 pairs=.4 bags=.4
"$python" $recipe/make_data.py
"$python" $recipe/write_model.py
grit() {
    "$python" -c 'from grit_mlx.cli.main import main; main()' "$@"
}
grit train --config $recipe/train.yaml
"$python" $recipe/finish.py runs/grit-tiny-next/run/checkpoints/step-00000300 runs/grit-tiny-next/kept
grit train --config $recipe/repair.yaml
"$python" $recipe/finish.py runs/grit-tiny-next/repaired runs/grit-tiny-next/final
"$python" $recipe/quantize.py runs/grit-tiny-next/final runs/grit-tiny-next/grit-tiny
grit eval ../shared/data/dev --model runs/grit-tiny-next/grit-tiny --bm25 --hybrid
