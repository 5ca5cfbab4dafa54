"""Captions for clips of the mini world, worded the way people write prompts.

`caption(clip, rng)` words a `Clip` in one of very many ways: short or long, with
synonyms and hypernyms, in varying order, with parts left out. `describe` also says
which facts the words really state, so that a classifier is only asked about those.
"""

import random

from spec import SUBJECTS, TRAVEL

# The nouns of a subject: typical first. The last two of each are held out of
# training when the text encoder is being tested on words it has not seen.
NOUNS = {
    "pirate_ship": "pirate ship|pirate ship|pirate boat|buccaneer vessel|galleon|corsair|ship with pirates|pirate vessel|ship with black sails|jolly roger ship|pirate galleon|privateer|buccaneer ship",
    "sailboat": "sailboat|sailing boat|yacht|sail boat|white sailboat|boat with a sail|sailing yacht|small sailboat|boat|dinghy|catamaran",
    "ship": "ship|cruise ship|ocean liner|big ship|steamer|ferry|passenger ship|cruiser|large boat|steamship|vessel",
    "dancing_woman": "dancing woman|woman|dancer|female dancer|girl|woman in a red dress|lady|dancing girl|flamenco dancer|salsa dancer|dancing lady|ballroom dancer",
    "dancing_man": "dancing man|man|male dancer|guy|disco dancer|man in a suit|dancing guy|boy|gentleman|dude|disco man",
    "runner": "runner|person|jogger|man|athlete|running man|running person|sprinter|marathon runner|jogging person|racer",
    "walker": "person|walker|man|pedestrian|walking man|walking person|human|hiker|stroller|traveller|wanderer",
    "surfer": "surfer|person surfing|surfer on a board|man on a surfboard|surfing man|surfboarder|wave rider|surfer guy|surf rider|surfer dude",
    "monster": "monster|ogre|red monster|demon|red demon|oni|devil|beast|red ogre|troll|goblin|evil creature",
    "ghost": "ghost|spirit|phantom|spooky ghost|white ghost|spook|spectre|halloween ghost|poltergeist|apparition",
    "alien": "alien|extraterrestrial|grey alien|martian|alien creature|space alien|alien head|et|visitor from space|alien being|space creature",
    "robot": "robot|android|machine|bot|robot head|droid|metal robot|toy robot|cyborg|automaton|mech",
    "dog": "dog|puppy|hound|pup|doggy|brown dog|pet dog|doggo|pet|labrador|mutt|canine",
    "cat": "cat|kitten|kitty|feline|house cat|tabby cat|orange cat|pet cat|tomcat|pussycat|tabby",
    "horse": "horse|stallion|pony|mare|brown horse|wild horse|steed|racehorse|foal|mustang|colt",
    "trex": "dinosaur|t-rex|tyrannosaurus|green dinosaur|trex|tyrannosaurus rex|dino|giant lizard|reptile|raptor|t rex",
    "dragon": "dragon|green dragon|flying dragon|fire dragon|chinese dragon|mythical dragon|fantasy dragon|serpent|wyvern|drake",
    "eagle": "eagle|bird|hawk|bald eagle|bird of prey|falcon|big bird|soaring eagle|raptor bird|condor|vulture",
    "penguin": "penguin|emperor penguin|little penguin|cute penguin|arctic bird|baby penguin|penguin bird|antarctic bird|king penguin",
    "elephant": "elephant|african elephant|grey elephant|big elephant|baby elephant|giant elephant|animal with a trunk|tusker|mammoth|pachyderm",
    "dolphin": "dolphin|bottlenose dolphin|blue dolphin|playful dolphin|sea mammal|flipper|dolphin animal|marine mammal|porpoise|orca",
    "whale": "whale|blue whale|big whale|giant whale|sperm whale|huge whale|spouting whale|sea giant|humpback|humpback whale",
    "fish": "fish|tropical fish|goldfish|clownfish|yellow fish|little fish|aquarium fish|colorful fish|angelfish|reef fish|guppy",
    "octopus": "octopus|kraken|squid|red octopus|giant octopus|sea creature with tentacles|octopus with tentacles|sea monster|cephalopod|cuttlefish",
    "duck": "duck|mallard|rubber duck|duckling|wild duck|green headed duck|water bird|waterfowl|drake duck|goose",
    "rocket": "rocket|spaceship|spacecraft|rocket ship|space rocket|space shuttle|shuttle|missile|starship|moon rocket|launch vehicle",
    "car": "car|red car|automobile|vehicle|sports car|auto|small car|race car|sedan|hatchback|motorcar",
    "train": "train|steam train|locomotive|steam engine|railway engine|steam locomotive|old train|railroad train|choo choo train|engine|railway train",
    "saucer": "ufo|flying saucer|alien spaceship|saucer|alien ship|spaceship with aliens|unidentified flying object|alien craft|mothership|hovering disc",
    "butterfly": "butterfly|blue butterfly|moth|monarch butterfly|insect with wings|beautiful butterfly|flying butterfly|winged insect|swallowtail|monarch",
    "bee": "bee|honeybee|bumblebee|honey bee|wasp|little bee|striped bee|insect|hornet|bumble bee",
    "balloon": "balloon|red balloon|party balloon|helium balloon|birthday balloon|air balloon|floating balloon|toy balloon|balloon on a string|inflated balloon",
    "snowman": "snowman|snow man|smiling snowman|winter snowman|snowman with a hat|frosty the snowman|man made of snow|christmas snowman|frosty|snow figure",
    "heart": "heart|red heart|love heart|valentine heart|love symbol|heart shape|big red heart|valentine|heart symbol|sweetheart",
    "ball": "ball|soccer ball|football|black and white ball|sports ball|kicked ball|soccerball|toy ball|futbol|leather ball",
    "cup": "cup|mug|coffee cup|teacup|hot drink|steaming mug|coffee mug|cup of tea|hot beverage|tea mug|tea cup",
}
NOUNS = {k: v.split("|") for k, v in NOUNS.items()}
assert set(NOUNS) == set(SUBJECTS), set(NOUNS) ^ set(SUBJECTS)

# Where it happens: whole phrases, and bare names for comma lists.
PLACES = {
    "coffee": "in coffee|in a cup of coffee|inside a cup of coffee|in a coffee cup|in a mug of coffee|in an espresso|in a latte|on coffee|in the coffee|in the middle of a cup of coffee|in hot coffee|inside a coffee mug|in black coffee|inside a giant cup of coffee|on the surface of a coffee|in a cappuccino|in an americano|in a mocha",
    "sea": "at sea|on the sea|in the sea|on the ocean|in the ocean|on the open sea|on the water|on the waves|in the waves|on the high seas|on a blue sea|across the ocean|at the open ocean|over the sea",
    "beach": "on a beach|on the beach|at the beach|on a sandy beach|on a tropical beach|by the sea on the sand|on the sand|at the seaside|on the seashore|along the shore|on the coast",
    "desert": "in the desert|in a desert|across the desert|in the sand dunes|on the dunes|in the sahara|in a sandy desert|among the dunes|in a hot desert|in the wasteland|in the dry sands",
    "snow": "in the snow|in a snowy landscape|in winter|in falling snow|on the snow|on a snowy field|in snowfall|in the arctic|during a snowstorm|in a blizzard|in a winter landscape|at the north pole",
    "forest": "in the forest|in a forest|in the woods|among trees|between the trees|in a green forest|in the jungle|through the forest|in the woodland|in a pine forest",
    "meadow": "in a meadow|in the meadow|on a meadow|on the grass|in a green field|in the grass|in a field of flowers|on a lawn|on green grass|in the countryside|in a pasture|in a grassland",
    "city": "in the city|in a city at night|in the city at night|at night in the city|at night|on a city street|downtown|in a night city|among skyscrapers|in a neon city|in the street|in a big town at night|in the metropolis",
    "space": "in space|in outer space|among the stars|between the stars|in the starry sky|in the galaxy|in the universe|through space|in deep space|in the cosmos|in orbit",
    "sunset": "at sunset|in front of a sunset|in the sunset|at sunrise|at dusk|under an orange sky|at golden hour|against the setting sun|in the evening|at dawn|in the evening glow",
    "sky": "in the sky|in the clouds|in a blue sky|among clouds|above the clouds|high in the sky|through the clouds|in the air|in a cloudy sky|in the heavens|up in the air",
    "room": "in a room|in the room|at home|in the living room|on a table|on the table|indoors|inside a house|on the floor of a room|in a bedroom|in an apartment|in the kitchen",
    "underwater": "underwater|under water|under the sea|deep under the sea|in an underwater world|at the bottom of the sea|in an aquarium|beneath the waves|in the deep sea|in a coral reef|below the surface",
}
PLACES = {k: v.split("|") for k, v in PLACES.items()}
PLACE_NAMES = {
    "coffee": "coffee|cup of coffee|espresso|latte|coffee mug", "sea": "sea|ocean|open sea|waves|blue ocean",
    "beach": "beach|sandy beach|seaside|shore", "desert": "desert|sand dunes|sahara", "snow": "snow|winter|snowy landscape|falling snow",
    "forest": "forest|woods|trees|jungle", "meadow": "meadow|green grass|field|grassland", "city": "city at night|night city|night|neon city|skyscrapers",
    "space": "space|outer space|stars|galaxy", "sunset": "sunset|sunrise|evening sky|orange sky", "sky": "sky|blue sky|clouds|cloudy sky",
    "room": "room|living room|indoors|table", "underwater": "underwater|deep sea|coral reef|ocean floor",
}
PLACE_NAMES = {k: v.split("|") for k, v in PLACE_NAMES.items()}

DOING = {
    "sail": "sailing|moving|cruising|floating along|gliding|drifting|travelling|swimming",
    "walk": "walking|strolling|marching|wandering|going for a walk|moving|striding",
    "run": "running|racing|sprinting|dashing|rushing|running fast|moving fast|hurrying",
    "drive": "driving|speeding|racing|rolling|moving|going fast|riding|travelling",
    "fly": "flying|soaring|gliding|floating|flying past|hovering|flying through the air",
    "roll": "rolling|rolling along|tumbling|moving",
    "bob": "bobbing|floating|swaying|bobbing up and down|rocking|rocking gently|hovering|moving up and down",
    "bounce": "bouncing|jumping|hopping|leaping|jumping up and down|bouncing up and down|springing",
    "spin": "spinning|turning around|twirling|rotating|spinning around|turning in circles|whirling|pirouetting",
    "dance": "dancing|dancing wildly|doing a dance|grooving|swinging|dancing happily|moving to the music|busting moves",
    "grow": "coming closer|approaching|growing|getting bigger|getting closer|growing larger|coming towards the camera|becoming huge",
    "shrink": "moving away|shrinking|getting smaller|going into the distance|disappearing in the distance|becoming tiny|receding",
    "idle": "standing|waiting|standing still|staying still|resting|not moving|motionless",
    "rise": "rising|going up|floating up|ascending|moving up|rising up|climbing|taking off",
    "fall": "falling|falling down|dropping|coming down|sinking|descending|going down",
}
DOING = {k: v.split("|") for k, v in DOING.items()}
# What suits one subject better than the general words.
OWN = {
    ("sail", "surfer"): "surfing|riding a wave|surfing a wave|riding the waves", ("bob", "surfer"): "surfing|balancing on a surfboard",
    ("sail", "dolphin"): "swimming|swimming fast|gliding", ("bounce", "dolphin"): "jumping|leaping out of the water|jumping out of the water|leaping",
    ("sail", "whale"): "swimming|gliding|swimming slowly", ("sail", "fish"): "swimming|swimming around|gliding", ("bob", "fish"): "swimming|floating",
    ("sail", "octopus"): "swimming|floating|drifting", ("bob", "octopus"): "floating|swimming|hovering", ("sail", "duck"): "swimming|paddling|floating along",
    ("rise", "octopus"): "swimming up|rising|floating up", ("fall", "octopus"): "sinking|diving|swimming down",
    ("run", "horse"): "galloping|running|racing|running wild", ("walk", "horse"): "trotting|walking|trotting along",
    ("walk", "penguin"): "waddling|walking|marching", ("walk", "duck"): "waddling|walking", ("walk", "trex"): "stomping|walking|roaming", ("walk", "elephant"): "walking|marching|trudging",
    ("walk", "cat"): "walking|strolling|prowling|sneaking", ("run", "dog"): "running|racing|dashing|running fast|playing",
    ("rise", "rocket"): "launching|lifting off|taking off|blasting off|flying up|rising|going up", ("fly", "rocket"): "flying|blasting|soaring|zooming|shooting",
    ("fly", "ghost"): "floating|flying|drifting|haunting", ("fly", "bee"): "flying|buzzing|buzzing around", ("fly", "butterfly"): "fluttering|flying|flapping its wings",
    ("bob", "butterfly"): "fluttering|hovering|flapping its wings", ("bob", "bee"): "buzzing|hovering", ("fly", "eagle"): "soaring|flying|gliding|flying high", ("fly", "dragon"): "flying|soaring|flapping its wings",
    ("fly", "saucer"): "flying|hovering|zooming|floating|gliding", ("bob", "saucer"): "hovering|floating", ("fall", "saucer"): "landing|descending|coming down|falling|crashing",
    ("fly", "balloon"): "floating|flying|drifting", ("rise", "balloon"): "floating up|rising|flying away|going up|floating away", ("bob", "balloon"): "floating|bobbing|hovering",
    ("drive", "train"): "chugging|driving|moving|rolling along|steaming", ("drive", "car"): "driving|speeding|racing|cruising|driving fast",
    ("idle", "cup"): "steaming|standing|sitting", ("run", "runner"): "running|jogging|sprinting|running fast|racing",
    ("bounce", "heart"): "beating|pulsing|bouncing|pounding", ("bounce", "ball"): "bouncing|bouncing up and down|jumping", ("roll", "ball"): "rolling",
}
OWN = {k: v.split("|") for k, v in OWN.items()}

WAYS = {
    "left": "to the left|left|leftwards|heading left|towards the left|from right to left|leftward|to the left side",
    "right": "to the right|right|rightwards|heading right|towards the right|from left to right|rightward|to the right side",
    "up": "up|upwards|upward|towards the top|straight up|into the air",
    "down": "down|downwards|downward|towards the bottom|straight down|to the ground",
}
WAYS = {k: v.split("|") for k, v in WAYS.items()}
# Verbs that already say up or down.
SAYS_WAY = ("up", "down", "rising", "falling", "dropping", "sinking", "ascending", "descending", "climbing", "launching", "taking off", "lifting off", "blasting off", "landing", "diving", "away")

CAMERA_WORDS = {
    "static": "static camera|still camera|fixed shot|static shot",
    "pan_left": "camera pans left|panning left|the camera moves to the left|pan left|camera pan to the left|camera moving left|slow pan left",
    "pan_right": "camera pans right|panning right|the camera moves to the right|pan right|camera pan to the right|camera moving right|slow pan right",
    "zoom_in": "zoom in|camera zooms in|zooming in|slow zoom in|the camera moves closer|dolly in|push in|camera moving forward",
    "zoom_out": "zoom out|camera zooms out|zooming out|slow zoom out|the camera pulls back|dolly out|pull out|camera moving back",
}
CAMERA_WORDS = {k: v.split("|") for k, v in CAMERA_WORDS.items()}
STYLE_SUFFIX = {
    "3d": "3d|3d render|3d animation|colorful 3d|rendered in 3d",
    "bw": "black and white|monochrome|in black and white|black & white|grayscale|monochrome film|black and white film|old film|without color|film noir|b&w",
    "flat": "flat illustration|2d cartoon|cartoon|flat style|2d animation|vector art|drawing|cartoon style|flat vector illustration|hand drawn|animated cartoon|2d",
}
STYLE_SUFFIX = {k: v.split("|") for k, v in STYLE_SUFFIX.items()}
STYLE_PREFIX = {
    "3d": "a 3d animation of|3d render of|a 3d video of",
    "bw": "a black and white video of|black and white film of|a monochrome video of|monochrome shot of|black and white footage of|an old movie of",
    "flat": "a cartoon of|a flat illustration of|2d cartoon of|a 2d animation of|a drawing of|an illustration of|an animated cartoon of",
}
STYLE_PREFIX = {k: v.split("|") for k, v in STYLE_PREFIX.items()}
FILLER = "a video of|video of|cinematic shot of|a shot of|close-up of|footage of|a clip of|wide shot of|a beautiful video of|a scene with|an animation of|a short film about|show me|generate|there is|i want to see|a picture of".split("|")
ENDINGS = "cinematic|high quality|beautiful|4k|detailed|cute|funny|dramatic lighting|colorful|masterpiece|epic|smooth motion|hd".split("|")
ADJECTIVES = "cute|beautiful|cool|funny|little|lovely|happy|amazing|nice|single|lonely".split("|")

CHASING = "chasing|running after|following|pursuing|hunting|chases|is chasing|racing after|going after|hot on the heels of".split("|")
CHASED = "chased by|followed by|fleeing from|running away from|pursued by|hunted by|escaping from|being chased by".split("|")
FIGHTING = "facing|fighting|battling|meeting|versus|vs|in front of|face to face with|against|attacking|talking to|opposite|looking at|confronting|meets|fights|encountering".split("|")
MUTUAL = "facing each other|fighting|battling|battling each other|fighting each other|meeting|in a battle|in a fight|having a duel|duelling|face to face|looking at each other|talking to each other|in combat|at war|clashing|in a standoff".split("|")

_PLURAL = {
    "person": "people", "man": "men", "woman": "women", "lady": "ladies", "pony": "ponies", "kitty": "kitties", "puppy": "puppies", "doggy": "doggies", "fish": "fish",
    "goldfish": "goldfish", "clownfish": "clownfish", "angelfish": "angelfish", "butterfly": "butterflies", "octopus": "octopuses", "goose": "geese", "mercury": "mercuries",
    "ferry": "ferries", "spacecraft": "spacecraft", "mech": "mechs", "foal": "foals", "gentleman": "gentlemen", "snowman": "snowmen", "oni": "oni", "buccaneer": "buccaneers",
    "body": "bodies", "aircraft": "aircraft", "craft": "crafts", "squid": "squids", "monarch": "monarchs",
}
_HEAD_END = (" with ", " on ", " in ", " of ", " from ", " made ", " surfing")


def plural(noun):
    """The plural of a noun phrase: its head is the word before the first preposition."""
    cut = min([noun.find(p) for p in _HEAD_END if p in noun] or [len(noun)])
    head, tail = noun[:cut], noun[cut:]
    before, _, word = head.rpartition(" ")
    if word in _PLURAL:
        many = _PLURAL[word]
    elif word.endswith("man") and word not in ("human", "roman"):
        many = word[:-3] + "men"
    elif word.endswith(("s", "x", "ch", "sh")):
        many = word + "es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        many = word[:-1] + "ies"
    else:
        many = word + "s"
    return (before + " " if before else "") + many + tail


def _article(noun, rng):
    r = rng.random()
    if r < 0.62:
        return ("an " if noun[0] in "aeiou" and not noun.startswith(("uni", "ufo", "one")) else "a ") + noun
    if r < 0.76:
        return "the " + noun
    if r < 0.82:
        return "one " + noun
    return noun


def _pick(words, rng):
    """The first words of a list are the commonest."""
    i = min(int(rng.expovariate(1.0) * len(words) * 0.38), len(words) * 4)
    return words[i] if i < len(words) else rng.choice(words)


# Rarer nouns (WordNet's kinds of each subject), filled in by `train_text.py`.
EXTRA = {}


def _noun(key, rng, unseen):
    words = NOUNS[key]
    if unseen is not True and key in EXTRA and rng.random() < 0.15:
        return rng.choice(EXTRA[key])
    if unseen is True:  # only the held-out words
        return rng.choice(words[-2:])
    return _pick(words[:-2] if unseen is False else words, rng)


def _group(actor, rng, unseen, said):
    """A subject with its number; `said` gets "count" if the number is stated."""
    noun = _noun(actor.subject, rng, unseen)
    if rng.random() < 0.08:
        noun = rng.choice(ADJECTIVES[: -2 if actor.count > 1 else None]) + " " + noun
    if actor.count == 1:
        said.add("count")
        return _article(noun, rng), "is"
    many = plural(noun)
    r = rng.random()
    if r < 0.3:  # just "ships"
        return ("the " if rng.random() < 0.1 else "some " if rng.random() < 0.1 else "") + many, "are"
    said.add("count")
    if actor.count == 2:
        return rng.choice(("two ", "two ", "two ", "2 ", "a pair of ", "a couple of ", "the two ")) + many, "are"
    if r < 0.45:
        return rng.choice(("several ", "many ", "a group of ", "a few ", "lots of ")) + many, "are"
    return rng.choice(("three ", "three ", "three ", "3 ", "a trio of ")) + many, "are"


def _doing(actor, rng, said, who, way_p=0.72):
    """What an actor does, perhaps with the direction."""
    own = OWN.get((actor.action, actor.subject))
    if actor.action == "idle" and rng.random() < 0.6:
        return ""
    if rng.random() < 0.13 and actor.direction not in ("up", "down"):
        verb = ""
    else:
        verb = _pick(own, rng) if own and rng.random() < 0.8 else _pick(DOING[actor.action], rng)
        said.add("action" + who)
        if verb == "swimming" and SUBJECTS[actor.subject].ground != "water":
            verb = "moving"
    if actor.direction in WAYS:
        if verb and any(w in verb for w in SAYS_WAY):
            said.add("direction" + who)
        elif rng.random() < way_p:
            verb = (verb + " " if verb else "") + rng.choice(WAYS[actor.direction])
            said.add("direction" + who)
        if actor.direction in ("up", "down") and "direction" + who not in said:
            said.discard("action" + who)
    elif verb:
        said.add("direction" + who)
    return verb


def _typo(text, rng):
    words = text.split(" ")
    at = [i for i, w in enumerate(words) if len(w) >= 5 and w.isalpha()]
    if not at:
        return text
    i = rng.choice(at)
    w = words[i]
    j = rng.randrange(1, len(w) - 1)
    kind = rng.randrange(3)
    words[i] = w[:j] + w[j + 1 :] if kind == 0 else w[:j] + w[j] + w[j:] if kind == 1 else w[:j] + w[j + 1] + w[j] + w[j + 2 :]
    return " ".join(words)


def describe(clip, rng, unseen=None):
    """A caption, and the set of facts it states.

    unseen=False words it without the held-out nouns, unseen=True only with them.
    """
    said = {"subjects", "relation"}
    one = clip.actors[0]
    two = clip.actors[1] if len(clip.actors) > 1 else None
    place = _pick(PLACES[clip.scene], rng)
    with_place = rng.random() < 0.93
    if with_place:
        said.add("scene")
    fight = clip.relation == "facing"

    if rng.random() < 0.10 and clip.relation not in ("chasing", "facing"):  # a list of words
        parts = [_noun(a.subject, rng, unseen) if a.count == 1 else plural(_noun(a.subject, rng, unseen)) for a in clip.actors]
        doing = _doing(one, rng, said, "0")
        if doing:
            parts.append(doing)
        if with_place:
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(PLACE_NAMES[clip.scene]))
        text = rng.choice((", ", ", ", " ")).join(parts)
    else:
        a, be = _group(one, rng, unseen, said)
        is_ = (be + " ") if rng.random() < 0.12 else ""
        if two is None:
            if fight:
                doing = _pick(MUTUAL, rng) if rng.random() < 0.85 else ""
            else:
                doing = _doing(one, rng, said, "0")
            core, tail = a, ((is_ if doing else "") + doing).strip()
        else:
            b, _ = _group(two, rng, unseen, said)
            if clip.relation == "chasing":
                way = " " + rng.choice(WAYS[one.direction]) if one.direction in WAYS and rng.random() < 0.55 else ""
                if way:
                    said.update(("direction0", "direction1"))
                if rng.random() < 0.7:
                    core, tail = f"{a} {_pick(CHASING, rng)} {b}", way.strip()
                else:
                    core, tail = f"{b} {_pick(CHASED, rng)} {a}", way.strip()
            elif fight:
                r = rng.random()
                if r < 0.5:
                    core, tail = f"{a} {_pick(FIGHTING, rng)} {b}", ""
                elif r < 0.9:
                    core, tail = f"{a} and {b}", _pick(MUTUAL, rng)
                else:
                    core, tail = f"{a} on the left and {b} on the right", ""
            else:
                da = _doing(one, rng, said, "0")
                r = rng.random()
                if r < 0.6:
                    db = _doing(two, rng, said, "1")
                    core, tail = f"{a} {da} and {b} {db}".replace("  ", " ").strip(), ""
                else:
                    core, tail = f"{a} {da} {rng.choice(('with', 'and', 'next to', 'near', 'together with', 'beside'))} {b}".replace("  ", " "), ""
        if with_place:
            r = rng.random()
            if r < 0.62:
                text = f"{core} {tail} {place}"
            elif r < 0.86:
                text = f"{core} {place} {tail}"
            else:
                text = f"{place}, {core} {tail}" if rng.random() < 0.6 else f"{place} {core} {tail}"
        else:
            text = f"{core} {tail}"
        text = " ".join(text.split())

    speak_style = clip.style != "3d" or rng.random() < 0.05
    prefix = ""
    if speak_style and rng.random() < 0.4:
        prefix = rng.choice(STYLE_PREFIX[clip.style])
        said.add("style")
    elif rng.random() < 0.13:
        prefix = rng.choice(FILLER)
    if prefix:
        text = prefix + " " + text
    extra = []
    if speak_style and "style" not in said:
        extra.append(_pick(STYLE_SUFFIX[clip.style], rng))
        said.add("style")
    if rng.random() < (0.04 if clip.camera == "static" else 0.78):
        extra.append(rng.choice(CAMERA_WORDS[clip.camera]))
        said.add("camera")
    if rng.random() < 0.07:
        extra.append(rng.choice(ENDINGS))
    rng.shuffle(extra)
    for e in extra:
        text = f"{e}, {text}" if rng.random() < 0.1 else f"{text}{rng.choice((', ', ', ', ', ', ' ', '. '))}{e}"
    if rng.random() < 0.04:
        text = _typo(text, rng)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:] + ("." if rng.random() < 0.6 else "")
    if clip.style == "3d":
        said.add("style")
    if clip.camera == "static":
        said.add("camera")
    return text, said


def caption(clip, rng):
    """One wording of a clip."""
    return describe(clip, rng)[0]


if __name__ == "__main__":
    import spec

    r = random.Random(1)
    for _ in range(40):
        c = spec.sample(r)
        print(caption(c, r))
