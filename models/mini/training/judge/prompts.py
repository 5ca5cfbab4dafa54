"""The list of prompts that clips are judged by: `prompts.jsonl`, in a fixed, shuffled order.

    python prompts.py            says what the list holds, and checks that it is held out
    python prompts.py --write    writes it anew, from the seed and `paraphrases.txt`

Held out means: no still and no clip that the transformer learnt from, nor the mirror image of one, has the same
subjects, numbers, scene, actions, directions, relation, camera and style. Each of those it has seen by itself, and most
pairs of them. The text encoder and the decoder learnt from endless draws of the sampler, which can give all of them.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import spec
from captions import DOING, NOUNS, OWN, PLACES, plural
from spec import SUBJECTS

LIST, PARAPHRASES = HERE / "prompts.jsonl", HERE / "paraphrases.txt"
SEED = 20
SINGLE, MANY, PAIRS = 144, 60, 96
STILL_SHARDS, VIDEO_SHARDS = 24, 25  # what `encode.py` makes with --clips 6400 --stills 24576
CAMERA = {"pan_left": "camera pans left", "pan_right": "camera pans right", "zoom_in": "camera zooms in", "zoom_out": "camera zooms out"}
STYLE = {"bw": "black and white", "flat": "2d cartoon"}
NUMBER = {2: "two", 3: "three"}
# Two that do something side by side both do one of these.
CALM = ("bob", "bounce", "dance", "idle")


def combination(clip):
    """All that a prompt can say about a clip."""
    actors = tuple((a.subject, a.action, a.direction, a.count) for a in clip.actors)
    relation = clip.relation if clip.relation in ("chasing", "facing") else ""
    return clip.scene, actors, relation, clip.camera, clip.style


def pool():
    """The clips that the transformer learnt from, by the seeds of `encode.py`: (clip, whether it moves)."""
    from encode import SHARD, STILLS, mirrored

    for name, shards, rows in (("still", STILL_SHARDS, STILLS), ("video", VIDEO_SHARDS, SHARD)):
        for number in range(shards):
            rng = random.Random(f"{name}{number}")
            stage = "simple" if name == "video" and number < 2 else "main"
            for _ in range(rows):
                clip = spec.sample(rng, stage)
                yield from ((clip, name == "video"), (mirrored(clip), name == "video"))


def action_of(key, rng):
    """Something that a subject does, mostly what it is known for."""
    action = rng.choice(SUBJECTS[key].actions if rng.random() < 0.75 else spec._ANYONE)
    if rng.random() < 0.4:  # directions are asked for more often than they would come
        action = rng.choice((spec._travel(key), spec._travel(key), "rise", "fall"))
    return action, spec.direction_for(action, rng, key)


def doing(actor):
    """"sailing to the left" and the like."""
    verb = OWN.get((actor.action, actor.subject), DOING[actor.action])[0]
    if actor.action == "fly" and actor.direction in ("up", "down"):
        return f"flying {actor.direction}"
    return f"{verb} to the {actor.direction}" if actor.direction in ("left", "right") else verb


def some(actor):
    noun = NOUNS[actor.subject][0]
    if actor.count > 1:
        return f"{NUMBER[actor.count]} {plural(noun)}"
    return ("an " if noun[0] in "aeio" else "a ") + noun


def words(clip):
    """The plain wording of a clip."""
    one, *rest = clip.actors
    if clip.relation == "chasing":
        text = f"{some(one)} chasing {some(rest[0])} to the {one.direction}"
    elif clip.relation == "facing" and rest:
        text = f"{some(one)} facing {some(rest[0])}"
    elif clip.relation == "facing":
        text = f"{some(one)} facing each other"
    elif rest:
        text = f"{some(one)} {doing(one)} and {some(rest[0])} {doing(rest[0])}"
    else:
        text = f"{some(one)} {doing(one)}"
    said = [f"{text} {PLACES[clip.scene][0]}", STYLE.get(clip.style), CAMERA.get(clip.camera)]
    return ", ".join(s for s in said if s)


def draw(kind, key, other, rng):
    scene = rng.choice(spec.SCENES)
    camera = rng.choices(spec.CAMERAS, (4, 1, 1, 1, 1))[0]
    style = rng.choices(spec.STYLES, (3, 1, 1))[0]
    relation = ""
    if kind == "two":
        relation = rng.choice(("chasing", "facing", ""))
        if relation == "chasing":
            way = rng.choice(("left", "right"))
            actors = [spec.Actor(k, spec._travel(k), way) for k in (key, other)]
        else:
            actors = [spec.Actor(k, rng.choice(CALM)) for k in (key, other)]
    else:
        action, way = action_of(key, rng)
        actors = [spec.Actor(key, action, way, 1 if kind == "one" else rng.choices((2, 3), (3, 2))[0])]
    return spec.Clip(scene, actors, relation, camera, style)


def plain():
    """The plain prompts, subjects in turn, none of them in the pool."""
    rng, seen, out = random.Random(SEED), {combination(c) for c, _ in pool()}, []
    keys = []
    for kind, n in (("one", SINGLE), ("many", MANY), ("two", PAIRS)):
        for i in range(n):
            keys = keys or rng.sample(list(SUBJECTS), len(SUBJECTS))
            key = keys.pop()
            while True:
                clip = draw(kind, key, rng.choice([k for k in SUBJECTS if k != key]), rng)
                if combination(clip) not in seen:
                    break
            seen.add(combination(clip))
            out.append(row(f"{kind}-{i:03}", words(clip), kind, clip))
    return out


def row(name, text, kind, clip):
    actors = [[a.subject, a.action, a.direction, a.count] for a in clip.actors]
    return {"id": name, "text": text, "kind": kind, "actors": actors, "relation": clip.relation, "scene": clip.scene, "camera": clip.camera, "style": clip.style, "plain": None}


def write():
    rows = plain()
    by_id = {r["id"]: r for r in rows}
    for line in PARAPHRASES.read_text().splitlines() if PARAPHRASES.exists() else []:
        name, text = line.split(": ", 1)
        rows.append({**by_id[name], "id": "para-" + name, "text": text, "plain": name})
    random.Random(SEED).shuffle(rows)
    for seed, r in enumerate(rows):
        r["seed"] = seed
    for r in rows:  # a paraphrase has its plain prompt's seed
        r["seed"] = by_id[r["plain"] or r["id"]]["seed"]
    LIST.write_text("".join(json.dumps(r) + "\n" for r in rows))


def load():
    """The rows of the list, in its order."""
    return [json.loads(line) for line in LIST.read_text().splitlines()]


def clip_of(r):
    """The clip that a prompt asks for."""
    return spec.Clip(r["scene"], [spec.Actor(*a) for a in r["actors"]], r["relation"], r["camera"], r["style"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        write()
    rows = load()
    everything, moving, known = set(), set(), Counter()
    for clip, moves in pool():
        everything.add(combination(clip))
        if moves and len(clip.actors) == 1:
            a = clip.actors[0]
            moving.add((a.subject, a.action, a.direction, clip.scene))
    for r in rows:
        known[r["kind"]] += 1
        assert combination(clip_of(r)) not in everything, r
        if r["kind"] == "one":
            subject, action, way, _ = r["actors"][0]
            known["of one, never in a clip with this scene, action and direction"] += (subject, action, way, r["scene"]) not in moving
    print(f"{len(rows)} prompts, {sum(bool(r['plain']) for r in rows)} of them paraphrases; none in the pool")
    for what, n in known.items():
        print(f"{n:5} {what}")
    for what in ("scene", "camera", "style"):
        print(what, dict(Counter(r[what] for r in rows)))


if __name__ == "__main__":
    main()
