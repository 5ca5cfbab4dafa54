#!/bin/sh
# Trains models/mini from nothing: a few hours on two CPU cores.
#
#   pip install -r models/mini/training/requirements.txt; apt-get install wordnet-base
#   models/mini/training/run.sh [WORK]        (from the repository root)
#
# The word list and the artwork are npm packages; they are fetched below WORK.
set -eu
WORK=${1:-.work/train}
HERE=$(dirname "$0")
export TORCHINDUCTOR_CACHE_DIR="$WORK/inductor"
mkdir -p "$WORK/words"
if [ ! -e "$WORK/words/package" ]; then
    (cd "$WORK/words" && npm pack emojilib@4.0.3 && tar xzf emojilib-4.0.3.tgz)
fi
python "$HERE/assets.py" --work "$WORK"
python "$HERE/basis.py" --work "$WORK"
python "$HERE/encode.py" --work "$WORK" --clips 6144 --stills 4096
python "$HERE/train_text.py" --work "$WORK" --minutes 12
python "$HERE/train_text.py" --work "$WORK" --minutes 14 --resume --lr 1.2e-3
python "$HERE/closed_form.py" --work "$WORK"
python "$HERE/train_vae.py" --work "$WORK" --minutes 60
python "$HERE/train_transformer.py" --work "$WORK" --minutes 72
python "$HERE/export.py" --work "$WORK" --out "$HERE/.."
