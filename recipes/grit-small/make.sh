#!/bin/sh
# Makes grit-small from ../shared/data/train, and the runs that it is compared with, on a GPU. SECONDS_TO_TUNE says how
# long training may take, all three runs together.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
recipe=recipes/grit-small
work=runs/grit-small

mkdir -p $work
if [ ! -d $work/SmolLM2-135M-Instruct ]; then
    file=$("$python" -m tests.real_model)
    "$python" -c 'from grit_mlx.cli.main import main; main()' convert "$file" --output $work/SmolLM2-135M-Instruct --dequantize
fi
"$python" $recipe/make_rows.py
"$python" $recipe/tune.py --seconds "${SECONDS_TO_TUNE:-260}" --set dtype="${DTYPE:-auto}"
"$python" benchmarks/real_training.py --model $work/SmolLM2-135M-Instruct --runs $work "$@"
