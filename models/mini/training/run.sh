#!/bin/sh
# Trains models/mini from nothing, on two CPU cores in about two hours.
#
#   pip install -r requirements.txt; apt-get install wordnet-base
#   models/mini/training/run.sh [WORK]        (from the repository root)
#
# The word list and the artwork are npm packages; they are unpacked below WORK.
set -eu
WORK=${1:-.work/train}
HERE=$(dirname "$0")
mkdir -p "$WORK/words/emojilib"
if [ ! -e "$WORK/words/emojilib/package" ]; then
    (cd "$WORK/words/emojilib" && npm pack emojilib@4.0.3 && tar xzf emojilib-4.0.3.tgz)
fi
python "$HERE/assets.py" --work "$WORK"
python "$HERE/train_text.py" --work "$WORK" --minutes 12 --threads 2
python "$HERE/train_vae.py" --work "$WORK" --minutes 38
python "$HERE/latents.py" --work "$WORK" &
LATENTS=$!
python "$HERE/train_transformer.py" --work "$WORK" --minutes 70
kill $LATENTS 2>/dev/null || true
python "$HERE/export.py" --work "$WORK" --out "$HERE/.."
