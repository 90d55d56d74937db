#!/usr/bin/env bash
# From built wheels alone, in a fresh environment and an empty folder, with no checkout on the path:
# a plugin is written, installed, linted, typed, tested and run, and so are those in examples/.
# Needs the package index. PYTHON: the interpreter, 3.11 or newer. KEEP=1 leaves the folder.
set -euo pipefail
unset PYTHONPATH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PIP_DISABLE_PIP_VERSION_CHECK=1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
[ -n "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT

began=$SECONDS
lap() { echo "== $1: $((SECONDS - began)) s"; began=$SECONDS; }
venv() { "${PYTHON:-python3}" -m venv "$1"; "$1/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'; }

venv "$work/build"
"$work/build/bin/python" -m pip install --quiet -c "$root/constraints.txt" hatchling
"$work/build/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation \
    --wheel-dir "$work/wheels" "$root" "$root"/plugins/ptkit-*/ "$root"/examples/*/
lap "wheels built ($(ls "$work/wheels" | wc -l))"

venv "$work/venv"
export PATH="$work/venv/bin:$PATH" PIP_FIND_LINKS="${PIP_FIND_LINKS:+$PIP_FIND_LINKS }$work/wheels"
install() { python -m pip install --quiet -c "$root/constraints.txt" "$@"; }
mkdir "$work/empty"
cd "$work/empty"
install torch==2.13.0
ours=()
for package in ptkit ptkit_{chatglm2,metrics_nlu,metrics_zh,nano,qa,seqlabel,tasks}; do
    ours+=("$work/wheels/$package"-*.whl) # by file, so that no index decides which ptkit it is
done
install "${ours[@]}" pytest ruff mypy
python -c "import ptkit, sys; sys.exit(not ptkit.__file__.startswith(sys.prefix))"
lap "ptkit installed from wheels"

ptkit new plugin demo --adds format,head,metric,tracker,command
cd demo
install -e '.[test]'
python -m pytest -q -p no:cacheprovider
ptkit plugins --timings
ptkit run recipe.toml --out run
ptkit demo-count data/train.tsv
spent=$((SECONDS - began))
lap "a new plugin: written, installed, tested, run"
[ "$spent" -lt 120 ] || { echo "took $spent s, more than two minutes" >&2; exit 1; }
ruff check --isolated .
ruff format --isolated --check .
mypy
cd ..

ptkit new plugin ptkit-demo-backbone --adds backbone,transform
cd ptkit-demo-backbone
install -e '.[test]'
python -m pytest -q -p no:cacheprovider
ruff check --isolated .
ruff format --isolated --check .
mypy
cd ..
lap "lint, types; the other kinds of component"

for example in "$root"/examples/*/; do
    name=$(basename "$example")
    package=${name//-/_}
    cp -r "$example" "$name"
    install "$(echo "$work/wheels/$package"-*.whl)[test]"
    cd "$name"
    ruff check --isolated .
    ruff format --isolated --check .
    mypy
    rm -r "$package" # what is tested and run is the wheel
    python -m pytest -q -p no:cacheprovider
    ptkit plugins | grep "^$name " > /dev/null || { echo "ptkit plugins lacks $name" >&2; exit 1; }
    ptkit run recipe.toml --out run
    cd ..
    lap "examples/$name"
done
