"""The vocabulary of the mini world, as data, and a sampler of clips.

A `Clip` says everything the renderer needs; a caption is written from the same
`Clip`, so words and pixels always agree.
"""

import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Subject:
    """What one subject looks like and how it behaves.

    sprite:  codepoint of the artwork (see `assets.py`).
    facing:  where the artwork looks: "left", "right" or "none".
    ground:  where it is at home: "land", "water", "air" or "any".
    actions: what it does when it is left to choose (first: most typical).
    homes:   scenes it is mostly seen in.
    """

    sprite: str
    facing: str
    ground: str
    actions: tuple
    homes: tuple


_SEA = ("sea",)
_LAND = ("beach", "desert", "snow", "forest", "meadow", "city", "room")
_AIR = ("sky", "sunset", "meadow", "sea", "city", "desert")
_ANY = _LAND + ("space", "sky", "sunset", "coffee")

SUBJECTS = {
    "pirate_ship": Subject("pirate_ship", "left", "water", ("sail", "bob", "spin", "grow"), ("sea", "coffee", "sea", "coffee", "sunset")),
    "sailboat": Subject("26f5", "left", "water", ("sail", "bob", "grow", "shrink"), ("sea", "coffee", "sea", "sunset")),
    "ship": Subject("1f6a2", "left", "water", ("sail", "bob", "grow", "shrink"), ("sea", "coffee", "sea", "sunset")),
    "dancing_woman": Subject("1f483", "none", "land", ("dance", "bounce", "spin", "idle"), ("beach", "city", "room", "meadow", "snow")),
    "dancing_man": Subject("1f57a", "none", "land", ("dance", "bounce", "spin", "idle"), ("beach", "city", "room", "meadow", "desert")),
    "runner": Subject("1f3c3", "left", "land", ("run", "bounce", "grow", "shrink"), _LAND),
    "walker": Subject("1f6b6", "left", "land", ("walk", "grow", "shrink", "idle"), _LAND),
    "surfer": Subject("1f3c4", "left", "water", ("sail", "bob", "bounce", "grow"), ("sea", "beach", "sea", "coffee")),
    "monster": Subject("1f479", "none", "any", ("bounce", "grow", "fly", "spin", "idle"), _ANY),
    "ghost": Subject("1f47b", "none", "air", ("fly", "bob", "grow", "shrink", "bounce"), ("city", "forest", "room", "space", "snow")),
    "alien": Subject("1f47d", "none", "any", ("bob", "grow", "bounce", "fly", "spin"), ("space", "desert", "city", "forest", "space")),
    "robot": Subject("1f916", "none", "land", ("bounce", "spin", "grow", "dance", "idle"), ("city", "room", "space", "desert")),
    "dog": Subject("1f415", "left", "land", ("run", "walk", "bounce", "idle"), _LAND),
    "cat": Subject("1f408", "left", "land", ("walk", "run", "bounce", "idle"), _LAND + ("room",)),
    "horse": Subject("1f40e", "left", "land", ("run", "walk", "bounce", "idle"), ("meadow", "desert", "beach", "snow", "forest")),
    "trex": Subject("1f996", "left", "land", ("walk", "run", "grow", "bounce"), ("desert", "forest", "meadow", "city")),
    "dragon": Subject("1f409", "left", "air", ("fly", "bob", "grow", "idle"), ("sky", "sunset", "city", "forest", "desert")),
    "eagle": Subject("1f985", "left", "air", ("fly", "grow", "shrink", "bob"), _AIR),
    "penguin": Subject("1f427", "none", "land", ("walk", "bounce", "dance", "idle"), ("snow", "snow", "beach", "sea")),
    "elephant": Subject("1f418", "left", "land", ("walk", "grow", "idle", "run"), ("meadow", "desert", "forest")),
    "dolphin": Subject("1f42c", "left", "water", ("bounce", "sail", "bob", "spin"), ("sea", "underwater", "sunset")),
    "whale": Subject("1f433", "left", "water", ("sail", "bob", "grow"), ("sea", "underwater", "coffee")),
    "fish": Subject("1f420", "left", "water", ("sail", "bob", "spin", "grow"), ("underwater", "underwater", "sea", "coffee")),
    "octopus": Subject("1f419", "none", "water", ("bob", "rise", "fall", "dance"), ("underwater", "underwater", "sea", "coffee")),
    "duck": Subject("1f986", "left", "water", ("sail", "bob", "walk", "idle"), ("sea", "coffee", "meadow", "beach")),
    "rocket": Subject("1f680", "right", "air", ("fly", "rise", "shrink", "grow"), ("space", "sky", "sunset", "city")),
    "car": Subject("1f697", "left", "land", ("drive", "drive", "bounce", "grow"), ("city", "desert", "meadow", "beach", "snow")),
    "train": Subject("1f682", "left", "land", ("drive", "drive", "grow", "shrink"), ("meadow", "desert", "snow", "forest", "city")),
    "saucer": Subject("1f6f8", "none", "air", ("fly", "bob", "fall", "rise", "shrink"), ("space", "city", "sky", "desert")),
    "butterfly": Subject("1f98b", "none", "air", ("fly", "bob", "rise", "grow"), ("meadow", "forest", "sky", "room")),
    "bee": Subject("1f41d", "left", "air", ("fly", "bob", "bounce"), ("meadow", "forest", "sky", "room")),
    "balloon": Subject("1f388", "none", "air", ("rise", "bob", "fly", "fall"), ("sky", "sunset", "city", "meadow", "room")),
    "snowman": Subject("26c4", "none", "land", ("idle", "bounce", "dance", "spin"), ("snow", "snow", "room", "forest")),
    "heart": Subject("2764", "none", "any", ("bounce", "grow", "spin", "rise"), _ANY),
    "ball": Subject("26bd", "none", "land", ("bounce", "roll", "spin", "fall"), ("meadow", "beach", "room", "city")),
    "cup": Subject("2615", "none", "any", ("idle", "bounce", "spin", "grow"), ("room", "room", "city", "beach", "sky")),
}

SCENES = (
    "coffee",  # a cup of coffee from above, filling the frame: liquid, foam, rim
    "sea",
    "beach",
    "desert",
    "snow",
    "forest",
    "meadow",
    "city",  # at night, lit windows
    "space",  # black, stars
    "sunset",  # sunset sky, sun low
    "sky",  # blue, drifting clouds
    "room",  # wall, floor, table top
    "underwater",
)

# Actions that cross the frame take a direction; "rise" is up, "fall" is down.
TRAVEL = ("sail", "walk", "run", "drive", "fly", "roll")
IN_PLACE = ("bob", "bounce", "spin", "dance", "grow", "shrink", "idle")
ACTIONS = TRAVEL + IN_PLACE + ("rise", "fall")
DIRECTIONS = ("left", "right", "up", "down", "none")
CAMERAS = ("static", "pan_left", "pan_right", "zoom_in", "zoom_out")
STYLES = ("3d", "bw", "flat")
RELATIONS = ("", "in", "on", "chasing", "facing")


@dataclass
class Actor:
    """`count` (1–3) of one subject, all doing one thing."""

    subject: str
    action: str = "idle"
    direction: str = "none"
    count: int = 1


@dataclass
class Clip:
    """One clip. `relation` joins the actors, or (with one) the actor and the scene.

    "chasing": the first actor runs after the second, both in one direction.
    "facing":  two look at each other, the first at the left.
    "in"/"on": the actors are in / on the scene ("in coffee", "on the beach").
    """

    scene: str
    actors: list = field(default_factory=list)
    relation: str = ""
    camera: str = "static"
    style: str = "3d"
    seed: int = 0


def clip_from_dict(d):
    """The inverse of `dataclasses.asdict` for a `Clip`."""
    return Clip(**{**d, "actors": [Actor(**a) for a in d["actors"]]})


def direction_for(action, rng, subject=None):
    """A direction that suits an action (and, for "fly", the subject)."""
    if action == "rise":
        return "up"
    if action == "fall":
        return "down"
    if action not in TRAVEL:
        return "none"
    if action == "fly" and rng.random() < 0.2:
        return rng.choice(("up", "down"))
    return rng.choice(("left", "right"))


# What anything at all can be seen doing.
_ANYONE = IN_PLACE + ("fly", "fly", "rise", "fall", "bounce", "grow")
_ON = ("beach", "desert", "snow", "meadow", "sea")


def sample(rng: random.Random, stage: str = "main") -> Clip:
    """A sensible random clip.

    stage "main" is the full mixture; "simple" has one actor kind, a still camera
    and the 3d style only (for the first part of training).
    """
    simple = stage == "simple"
    keys = list(SUBJECTS)
    key = "pirate_ship" if rng.random() < 0.05 else rng.choice(keys)
    # Home three times in four, anywhere otherwise: every pair is seen sometimes.
    scene = rng.choice(SUBJECTS[key].homes) if rng.random() < 0.7 else rng.choice(SCENES)
    if rng.random() < 0.06:
        scene = "coffee"

    def act(k):
        subject = SUBJECTS[k]
        action = rng.choice(subject.actions) if rng.random() < 0.8 else rng.choice(_ANYONE)
        if rng.random() < 0.25:  # the typical action weighs more
            action = subject.actions[0]
        return action, direction_for(action, rng, k)

    action, direction = act(key)
    relation = "in" if scene not in _ON else "on" if rng.random() < 0.5 else "in"
    if simple or rng.random() < 0.75:
        count = rng.choices((1, 2, 3), (0.68, 0.22, 0.10))[0]
        actors = [Actor(key, action, direction, count)]
        if count == 2 and action not in ("rise", "fall") and rng.random() < 0.45:
            relation = "facing"
            actors[0].direction = "none"
            if action in TRAVEL:
                actors[0].action = rng.choice(("bob", "bounce", "idle"))
    else:
        ground = SUBJECTS[key].ground
        others = [k for k in keys if k != key and (SUBJECTS[k].ground == ground or rng.random() < 0.35)]
        other = rng.choice(others)
        relation = rng.choices(("chasing", "facing", relation), (0.35, 0.3, 0.35))[0]
        if relation == "chasing":
            way = rng.choice(("left", "right"))
            actors = [Actor(k, _travel(k), way) for k in (key, other)]
        elif relation == "facing":
            calm = ("bob", "bounce", "idle", "dance")
            actors = [Actor(k, rng.choice(calm)) for k in (key, other)]
        else:
            actors = [Actor(key, action, direction), Actor(other, *act(other))]
    camera, style = "static", "3d"
    if not simple:
        camera = rng.choices(CAMERAS, (0.64, 0.08, 0.08, 0.12, 0.08))[0]
        style = rng.choices(STYLES, (0.84, 0.07, 0.09))[0]
    return Clip(scene, actors, relation, camera, style, rng.getrandbits(31))


def _travel(key):
    """The way a subject gets from one side to the other."""
    for action in SUBJECTS[key].actions:
        if action in TRAVEL:
            return action
    return {"land": "walk", "water": "sail", "air": "fly", "any": "fly"}[SUBJECTS[key].ground]
