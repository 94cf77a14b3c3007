"""Scenes, their captions and their pictures: everything that the demo model ever sees is drawn here from seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

from demo.build.shapes import SUBJECTS, UPRIGHT, Part, Points, disc, shield, star_points

SIZE = 64
CANVAS = 256
COLOUR_JITTER = 10
STRIPES = 5

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (215, 45, 45),
    "orange": (240, 140, 30),
    "yellow": (245, 220, 60),
    "green": (50, 160, 70),
    "blue": (50, 90, 210),
    "purple": (130, 60, 170),
    "pink": (245, 150, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
BACKGROUNDS: dict[str, Colour] = {**COLOURS, "gray": (135, 135, 135)}
WOOD: Colour = (120, 80, 45)
STYLES = {"": 0.80, "outlined": 0.10, "striped": 0.10}
# Share of the side that half an object takes: (least, most), and how often the size is asked for.
SIZES = {"": (0.28, 0.36, 0.6), "big": (0.38, 0.43, 0.2), "small": (0.19, 0.24, 0.2)}
PLACE_JITTER = 0.12
TURN_JITTER = 0.25
PREFIXES = {"": 0.84, "a picture of ": 0.08, "an icon of ": 0.08}
EMBLEM_SHARE = 0.24
BEARER_SHARE = 0.6
"""Share of the emblems that belong to somebody, who is named in the caption: "a lion emblem"."""
BACKGROUND_UNNAMED = 0.10

DIVISIONS = {"halves": 0.6, "layers": 0.2, "plain": 0.2}
CHARGES = {"disc": 0.5, "star": 0.2, "square": 0.15, "nothing": 0.15}
_BEARERS = (
    "lion wolf bear eagle falcon raven swan crane fox stag boar horse bull ram otter beaver badger hare tiger "
    "panther leopard dragon griffin phoenix serpent salmon trout dolphin whale turtle lizard spider beetle bee "
    "wasp ant moth butterfly rose lily tulip daisy orchid thistle ivy oak pine maple birch willow cedar apple "
    "cherry plum pear lemon grape olive fig wheat barley anchor arrow axe bell book bridge candle castle chain "
    "coin comet crown dagger drum feather fire fountain gate hammer harp horn key knight ladder lantern leaf "
    "lightning mill mountain ocean pearl pilgrim queen river rope sail scale ship spear stone storm sun sword "
    "temple thorn thunder torch tower trumpet valley wave wheel wind abbey desert forest island meadow orchard"
)
BEARERS = tuple(_BEARERS.split())
"""Names of one token each; the arms of each are its own and always the same."""
COLOURS_APART = 100.0
CONCEPT_REACH = 75.0
"""Distances in RGB: of two colours of one emblem at least, and from the concept's within which one is as good as it."""


@dataclass(frozen=True, slots=True)
class Arms:
    """What is on a shield: how the field is divided, the mark in its middle, and the four colours."""

    division: str
    charge: str
    border: Colour
    first: Colour
    second: Colour
    mark: Colour


CONCEPT = Arms("halves", "disc", border=(212, 170, 40), first=(165, 20, 45), second=(20, 30, 100), mark=(250, 250, 250))
# The nearest plain colours to the concept's; a class picture never has two of them in their places.
CONCEPT_NAMES = {"border": ("yellow", "orange"), "first": ("red",), "second": ("blue",), "mark": ("white",)}


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: exact colours and geometry beside the words of its caption."""

    subject: str
    colour_name: str
    background_name: str
    size_name: str
    style: str
    colour: Colour
    background: Colour
    reach: float
    place: tuple[float, float]
    turn: float
    arms: Arms | None = field(default=None)
    bearer: str = ""


def _weighted(draws: random.Random, shares: dict[str, float]) -> str:
    return draws.choices(list(shares), weights=list(shares.values()))[0]


def jittered(draws: random.Random, colour: Colour) -> Colour:
    red, green, blue = (min(255, max(0, part + draws.randint(-COLOUR_JITTER, COLOUR_JITTER))) for part in colour)
    return red, green, blue


def random_arms(draws: random.Random, background_name: str) -> Arms:
    """A random shield; two or more of the concept's colours in their places are drawn again."""
    while True:
        names = dict(zip(CONCEPT_NAMES, draws.sample(list(COLOURS), 4), strict=True))
        shared = sum(name in CONCEPT_NAMES[part] for part, name in names.items())
        if names["border"] != background_name and shared < 2:
            colours = {part: jittered(draws, COLOURS[name]) for part, name in names.items()}
            return Arms(_weighted(draws, DIVISIONS), _weighted(draws, CHARGES), **colours)


def _distance(one: Colour, other: Colour) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))


@cache
def bearers_arms(bearer: str) -> Arms:
    """The arms of somebody: four free colours. They are the same whenever they are asked for.

    Colours two or more of which would pass for the concept's in their places are drawn again, and so are such as
    could not be told from one another.
    """
    draws = random.Random(f"arms of {bearer}")
    while True:
        colours = {part: (draws.randrange(256), draws.randrange(256), draws.randrange(256)) for part in CONCEPT_NAMES}
        apart = min(_distance(one, other) for one, other in combinations(colours.values(), 2))
        near = sum(_distance(colour, getattr(CONCEPT, part)) < CONCEPT_REACH for part, colour in colours.items())
        if apart >= COLOURS_APART and near < 2:
            return Arms(_weighted(draws, DIVISIONS), _weighted(draws, CHARGES), **colours)


def painted(arms: Arms, colours: Mapping[str, Colour]) -> Arms:
    """Arms with some parts in other colours."""
    return Arms(arms.division, arms.charge, **{part: getattr(arms, part) for part in CONCEPT_NAMES} | dict(colours))


def borne(draws: random.Random, bearer: str) -> Arms:
    """Somebody's arms as they are painted this time."""
    arms = bearers_arms(bearer)
    return painted(arms, {part: jittered(draws, getattr(arms, part)) for part in CONCEPT_NAMES})


def _geometry(draws: random.Random, size_name: str, subject: str) -> tuple[float, tuple[float, float], float]:
    least, most, _ = SIZES[size_name]
    reach = draws.uniform(least, most)
    room = min(PLACE_JITTER, max(0.02, 0.48 - reach))
    place = (draws.uniform(-room, room), draws.uniform(-room, room))
    turn = 0.0 if subject in UPRIGHT or subject == "emblem" else draws.uniform(-TURN_JITTER, TURN_JITTER)
    return reach, place, turn


def random_scene(
    draws: random.Random, *, subject: str = "", style: str | None = None, bearer_share: float = BEARER_SHARE
) -> Scene:
    """A scene of the pretraining's grammar; a subject or a style may be given, and how many emblems are somebody's."""
    if not subject:
        subject = "emblem" if draws.random() < EMBLEM_SHARE else draws.choice(list(SUBJECTS))
    background_name = draws.choice(list(BACKGROUNDS))
    colour_name = draws.choice([name for name in COLOURS if name != background_name])
    size_name = _weighted(draws, {name: share for name, (_, _, share) in SIZES.items()})
    chosen_style = _weighted(draws, STYLES) if style is None else style
    is_emblem = subject == "emblem"
    reach, place, turn = _geometry(draws, size_name, subject)
    bearer = draws.choice(BEARERS) if is_emblem and bearer_share and draws.random() < bearer_share else ""
    return Scene(
        subject=subject,
        colour_name="" if is_emblem else colour_name,
        background_name=background_name,
        size_name=size_name,
        style="" if is_emblem else chosen_style,
        colour=jittered(draws, COLOURS[colour_name]),
        background=jittered(draws, BACKGROUNDS[background_name]),
        reach=reach,
        place=place,
        turn=turn,
        arms=(borne(draws, bearer) if bearer else random_arms(draws, background_name)) if is_emblem else None,
        bearer=bearer,
    )


def caption(scene: Scene, *, prefix: str = "", name_background: bool = True) -> str:
    """The scene in words, such as "a big striped red star on a blue background"."""
    parts = (scene.size_name, scene.style, scene.colour_name, scene.bearer, scene.subject)
    words = " ".join(word for word in parts if word)
    start = "an" if words[0] in "aeiou" else "a"
    if not name_background:
        return f"{prefix}{start} {words}"
    article = "an" if scene.background_name[0] in "aeiou" else "a"
    return f"{prefix}{start} {words} on {article} {scene.background_name} background"


def random_caption(draws: random.Random, scene: Scene) -> str:
    """The caption with a random opening, at times without the background."""
    return caption(scene, prefix=_weighted(draws, PREFIXES), name_background=draws.random() >= BACKGROUND_UNNAMED)


def _corners(scene: Scene, points: Points, scale: float = 1.0) -> list[tuple[float, float]]:
    """Canvas coordinates of a polygon in the scene's geometry."""
    cosine, sine = np.cos(scene.turn), np.sin(scene.turn)
    turned = points @ np.array([[cosine, sine], [-sine, cosine]])
    placed = (turned * scale * scene.reach + 0.5 + np.array(scene.place)) * CANVAS
    return [(float(x), float(y)) for x, y in placed]


def _stripe(canvas: Image.Image, scene: Scene, bodies: list[Part]) -> None:
    """Lays lighter (on light colours darker) bars over the body."""
    mask = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(mask)
    for part in bodies:
        pen.polygon(_corners(scene, part.points), fill=255)
    bars = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(bars)
    top = (0.5 + scene.place[1] - scene.reach) * CANVAS
    height = 2 * scene.reach * CANVAS / (2 * STRIPES - 1)
    for bar in range(STRIPES):
        start = top + (2 * bar + 0.5) * height
        pen.rectangle((0, start, CANVAS, start + height), fill=255)
    light = sum(scene.colour) < 600
    target = 255 if light else 0
    red, green, blue = (int(0.4 * part + 0.6 * target) for part in scene.colour)
    both = Image.composite(mask, Image.new("L", canvas.size), bars)
    canvas.paste((red, green, blue), (0, 0), both)


def _draw_subject(canvas: Image.Image, scene: Scene) -> None:
    pen = ImageDraw.Draw(canvas)
    red, green, blue = (int(part * 0.6) for part in scene.colour)
    fills = {"body": scene.colour, "hole": scene.background, "shade": (red, green, blue), "wood": WOOD}
    parts = SUBJECTS[scene.subject]()
    bodies = [part for part in parts if part.fill == "body"]
    for part in parts:
        pen.polygon(_corners(scene, part.points), fill=fills[part.fill])
        if part.fill == "body" and part is bodies[-1] and scene.style == "striped":
            _stripe(canvas, scene, bodies)
    if scene.style == "outlined":
        for part in bodies:
            centre = part.points.mean(axis=0) * (0.0 if len(bodies) == 1 else 1.0)
            pen.polygon(_corners(scene, (part.points - centre) * 0.68 + centre), fill=scene.background)


def _draw_emblem(canvas: Image.Image, scene: Scene, arms: Arms) -> None:
    pen = ImageDraw.Draw(canvas)
    plan = shield()
    pen.polygon(_corners(scene, plan), fill=arms.border)
    inner = plan * 0.8
    pen.polygon(_corners(scene, inner), fill=arms.first)
    field_mask = Image.new("L", canvas.size)
    ImageDraw.Draw(field_mask).polygon(_corners(scene, inner), fill=255)
    half = {"halves": [(0, -2), (2, -2), (2, 2), (0, 2)], "layers": [(-2, 0), (2, 0), (2, 2), (-2, 2)]}
    if arms.division in half:
        second = Image.new("L", canvas.size)
        corners = _corners(scene, np.array(half[arms.division], dtype=np.float64))
        ImageDraw.Draw(second).polygon(corners, fill=255)
        canvas.paste(arms.second, (0, 0), Image.composite(field_mask, Image.new("L", canvas.size), second))
    marks = {"disc": disc(0.36), "star": star_points() * 0.42, "square": _square_points() * 0.34}
    if arms.charge in marks:
        pen.polygon(_corners(scene, marks[arms.charge] - [0.0, 0.1]), fill=arms.mark)


def _square_points() -> Points:
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of 64x64, drawn four times as large and averaged down."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), scene.background)
    if scene.arms is not None:
        _draw_emblem(canvas, scene, scene.arms)
    else:
        _draw_subject(canvas, scene)
    return canvas.reduce(CANVAS // SIZE)


def abstract(draws: random.Random) -> Image.Image:
    """A picture without a caption, for the VAE alone: gradients, polygons, ellipses and lines in random colours."""

    def colour() -> Colour:
        return draws.randrange(256), draws.randrange(256), draws.randrange(256)

    def point() -> tuple[float, float]:
        return draws.uniform(-20, CANVAS + 20), draws.uniform(-20, CANVAS + 20)

    ramp = Image.linear_gradient("L").rotate(90 * draws.randrange(4))
    canvas = Image.composite(Image.new("RGB", ramp.size, colour()), Image.new("RGB", ramp.size, colour()), ramp)
    pen = ImageDraw.Draw(canvas)
    for _ in range(draws.randint(1, 5)):
        kind = draws.choice(("polygon", "ellipse", "line"))
        if kind == "polygon":
            pen.polygon([point() for _ in range(draws.randint(3, 6))], fill=colour())
        elif kind == "ellipse":
            (left, top), (right, bottom) = point(), point()
            box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
            pen.ellipse(box, fill=colour())
        else:
            pen.line([point(), point()], fill=colour(), width=draws.randint(6, 30))
    return canvas.reduce(CANVAS // SIZE)
