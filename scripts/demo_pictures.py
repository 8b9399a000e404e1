"""The pictures of the embedded demo: shapes, patterns and small scenes, each drawn from a seed with a true caption.

    from demo_pictures import draw_pictures
    pictures = draw_pictures(count=400, seed=0)

Coordinates: the origin is the middle of the picture, the shorter side has length 1, y points down. The square from
-0.5 to 0.5 is what CLIP's centre crop keeps, so everything that a caption names lies inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Point = tuple[float, float]
Points = list[Point]

OVERSAMPLE = 4  # drawn this many times larger, then averaged down: antialiasing
SIZES = [(96, 72), (72, 96), (96, 96), (112, 84), (84, 112), (120, 80), (112, 112), (128, 96), (96, 128), (160, 90)]
LARGE_SIZES = [(160, 120), (120, 160), (144, 144), (160, 160)]
LARGE_SHARE = 0.06  # of the pictures

COLORS: dict[str, Color] = {
    "red": (217, 58, 52),
    "orange": (240, 140, 46),
    "yellow": (248, 208, 66),
    "green": (72, 158, 88),
    "teal": (42, 157, 155),
    "blue": (52, 108, 200),
    "purple": (126, 82, 172),
    "pink": (240, 140, 176),
    "brown": (134, 88, 56),
    "gray": (136, 142, 150),
    "black": (40, 40, 48),
    "white": (248, 247, 242),
}
NAVY, NIGHT, SNOW, GRASS = (22, 30, 66), (60, 62, 118), (238, 243, 248), (116, 178, 88)
TRUNK, LEAF, GLASS, WOOD = (112, 74, 50), (84, 150, 70), (178, 222, 240), (178, 126, 78)


# --- Colours -----------------------------------------------------------------------------------------------------


def mix(one: Color, two: Color, share: float) -> Color:
    """The colour that is `share` of the way from `one` to `two`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, two, strict=True))
    return red, green, blue


def lighter(color: Color, share: float = 0.3) -> Color:
    """The colour, some way to white."""
    return mix(color, (255, 255, 255), share)


def darker(color: Color, share: float = 0.3) -> Color:
    """The colour, some way to a bluish black."""
    return mix(color, (16, 16, 36), share)


def tint(name: str, rng: Random) -> Color:
    """A named colour, a little different each time."""
    return mix(COLORS[name], (rng.randrange(256), rng.randrange(256), rng.randrange(256)), rng.uniform(0, 0.08))


def far_apart(one: str, two: str) -> bool:
    """Whether two named colours are easy to tell from one another."""
    return math.dist(COLORS[one], COLORS[two]) > 110


def pick_colors(rng: Random, count: int) -> list[str]:
    """`count` colour names, each easy to tell from all others."""
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(list(COLORS))
        if all(far_apart(name, other) for other in names):
            names.append(name)
    return names


def pick(rng: Random, names: str, avoid: str = "") -> str:
    """One of the space-separated colour `names` that is easy to tell from all in `avoid`."""
    return rng.choice([name for name in names.split() if all(far_apart(name, other) for other in avoid.split())])


# --- Outlines ----------------------------------------------------------------------------------------------------


def regular(corners: int, inner: float = 1.0) -> Points:
    """A regular polygon of radius 1 that stands on its base; with `inner` < 1 a star of that inner radius."""
    count = corners if inner == 1.0 else 2 * corners
    turn = 0.0 if corners % 2 or inner != 1.0 else math.pi / corners
    radii = [1.0 if inner == 1.0 or i % 2 == 0 else inner for i in range(count)]
    angles = [2 * math.pi * i / count + turn for i in range(count)]
    return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, angles, strict=True)]


def heart() -> Points:
    """A heart of about radius 1."""
    angles = [2 * math.pi * i / 80 for i in range(80)]
    wave = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    return [(math.sin(t) ** 3, -(y + 2.5) / 16) for t, y in zip(angles, wave, strict=True)]


def crescent() -> Points:
    """A moon's crescent of radius 1, open to the right."""
    outer = [(-math.cos(t), math.sin(t)) for t in (math.radians(a) for a in range(-125, 126, 5))]
    inner = [(0.42 - 0.83 * math.cos(t), 0.83 * math.sin(t)) for t in (math.radians(a) for a in range(100, -101, -5))]
    return outer + inner


def mirrored(half: Points) -> Points:
    """An outline from its right half, given from top to bottom."""
    return half + [(-x, y) for x, y in reversed(half)]


CIRCLE = regular(72)
BOX = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
SHAPES: dict[str, Points] = {
    "circle": [(0.9 * x, 0.9 * y) for x, y in CIRCLE],
    "square": [(0.8 * x, 0.8 * y) for x, y in BOX],
    "triangle": [(x, y + 0.2) for x, y in regular(3)],
    "star": regular(5, 0.45),
    "diamond": [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],
    "hexagon": regular(6),
    "heart": heart(),
    "cross": mirrored([(0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3), (0.3, 0.9)]),
    "crescent": crescent(),
    "oval": [(x, 0.58 * y) for x, y in CIRCLE],
    "arrow": [(-1, -0.28), (0.1, -0.28), (0.1, -0.72), (1, 0), (0.1, 0.72), (0.1, 0.28), (-1, 0.28)],
}
TURNABLE = {
    "circle": 180.0,
    "heart": 20.0,
    "triangle": 20.0,
    "arrow": 0.0,
    "square": 14.0,
    "diamond": 10.0,
    "oval": 35.0,
}


def place(points: Points, x: float, y: float, width: float, height: float | None = None, angle: float = 0.0) -> Points:
    """The outline stretched to half-axes `width` and `height`, turned by `angle` degrees and moved to (x, y)."""
    tall = width if height is None else height
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [(x + cos * width * a - sin * tall * b, y + sin * width * a + cos * tall * b) for a, b in points]


def disc(x: float, y: float, width: float, height: float | None = None, angle: float = 0.0) -> Points:
    """An ellipse."""
    return place(CIRCLE, x, y, width, height, angle)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """An upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def arc(x: float, y: float, radius: float, start: int, stop: int, flat: float = 1.0) -> Points:
    """Points on an ellipse's arc, in degrees, clockwise from the right."""
    angles = [math.radians(start + (stop - start) * i / 24) for i in range(25)]
    return [(x + radius * math.cos(t), y + flat * radius * math.sin(t)) for t in angles]


# --- The canvas --------------------------------------------------------------------------------------------------


class Canvas:
    """An oversampled picture in which everything is drawn as filled outlines.

    `right` and `bottom` are the coordinates of the picture's edges: 0.5 or more.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE))
        self.unit = OVERSAMPLE * min(width, height)
        self.right, self.bottom = (0.5 * side / min(width, height) for side in (width, height))

    def fill(self, points: Points, color: Color, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Fill an outline, if wanted translucent or with soft edges."""
        mask = Image.new("L", self.image.size)
        outline = [((x + self.right) * self.unit, (y + self.bottom) * self.unit) for x, y in points]
        ImageDraw.Draw(mask).polygon(outline, fill=round(255 * opacity))
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * self.unit))
        self.image.paste(color, (0, 0), mask)

    def stroke(self, points: Points, color: Color, width: float) -> None:
        """Draw a line of round pieces through the points."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length, angle = math.dist((x0, y0), (x1, y1)), math.degrees(math.atan2(y1 - y0, x1 - x0))
            self.fill(place(BOX, (x0 + x1) / 2, (y0 + y1) / 2, length / 2, width / 2, angle), color)
            self.fill(disc(x1, y1, width / 2), color)

    def solid(self, points: Points, color: Color) -> None:
        """Fill an outline that casts a soft shadow."""
        self.fill([(x + 0.015, y + 0.025) for x, y in points], (16, 16, 36), 0.32, 0.018)
        self.fill(points, color)

    def ball(self, x: float, y: float, width: float, height: float, color: Color, angle: float = 0.0) -> None:
        """A round thing with a shaded side and a light spot."""
        self.solid(disc(x, y, width, height, angle), darker(color, 0.14))
        self.fill(disc(x - 0.09 * width, y - 0.1 * height, 0.86 * width, 0.84 * height, angle), color, 1, 0.04 * width)
        self.fill(disc(x - 0.36 * width, y - 0.42 * height, 0.2 * width, 0.14 * height, -35), lighter(color, 0.75), 0.8)

    def gradient(self, top: Color, bottom: Color, angle: float = 0.0) -> None:
        """Cover the picture with a gradient, top to bottom, turned by `angle` degrees."""
        wide, high = self.image.size
        reach = math.ceil(math.hypot(wide, high)) if angle else max(wide, high)
        ramp = (
            Image.linear_gradient("L").resize((reach, reach if angle else high)).rotate(angle, Image.Resampling.BICUBIC)
        )
        left, upper = (ramp.width - wide) // 2, (ramp.height - high) // 2
        mask = ramp.crop((left, upper, left + wide, upper + high))
        self.image = Image.composite(
            Image.new("RGB", self.image.size, bottom), Image.new("RGB", self.image.size, top), mask
        )

    def ground(self, top: float, color: Color) -> None:
        """Fill everything below `top`, darker towards the lower edge."""
        self.fill(box(-self.right, top, self.right, self.bottom), color)
        self.fill(box(-self.right, self.bottom - 0.08, self.right, self.bottom + 0.2), darker(color), 0.4, 0.08)

    def finished(self) -> Image.Image:
        """The picture at its own size."""
        return self.image.reduce(OVERSAMPLE)


def backdrop(canvas: Canvas, color: Color, rng: Random) -> None:
    """A background of one colour, a little lighter on one side."""
    canvas.gradient(
        lighter(color, rng.uniform(0.08, 0.2)), darker(color, rng.uniform(0.02, 0.14)), rng.uniform(-40, 40)
    )


def a(words: str) -> str:
    """The words with their article: `an orange circle`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# --- Shapes ------------------------------------------------------------------------------------------------------


def put_shape(canvas: Canvas, shape: str, color: Color, spot: Point, size: float, rng: Random) -> None:
    """Draw a named shape with its shadow, turned as far as its name allows."""
    turn = TURNABLE.get(shape, 30.0)
    canvas.solid(place(SHAPES[shape], *spot, size, angle=rng.uniform(-turn, turn)), color)


def one_shape(canvas: Canvas, rng: Random) -> str:
    """A small or large shape somewhere on a background."""
    (front, back), shape = pick_colors(rng, 2), rng.choice(list(SHAPES))
    word, size = rng.choice([("small", 0.14), ("large", 0.36), ("", 0.24)])
    drift = 0.44 - size
    spot = rng.uniform(-drift, drift), rng.uniform(-drift, drift)
    backdrop(canvas, tint(back, rng), rng)
    put_shape(canvas, shape, tint(front, rng), spot, size * rng.uniform(0.95, 1.08), rng)
    return f"{a(f'{word} {front} {shape}'.strip())} on {a(back)} background"


def two_shapes(canvas: Canvas, rng: Random) -> str:
    """Two shapes, one above or beside the other."""
    first, second, back = pick_colors(rng, 3)
    one, two = rng.choice(list(SHAPES)), rng.choice(list(SHAPES))
    relation, dx, dy = rng.choice([("above", 0, -1), ("below", 0, 1), ("left of", -1, 0), ("right of", 1, 0)])
    gap, slip = rng.uniform(0.21, 0.26), rng.uniform(-0.09, 0.09)
    spot = dx * gap + abs(dy) * slip, dy * gap + abs(dx) * slip
    backdrop(canvas, tint(back, rng), rng)
    put_shape(canvas, one, tint(first, rng), spot, rng.uniform(0.16, 0.21), rng)
    put_shape(canvas, two, tint(second, rng), (-spot[0], -spot[1]), rng.uniform(0.16, 0.21), rng)
    return f"{a(first)} {one} {relation} {a(second)} {two} on {back}"


def inside_shape(canvas: Canvas, rng: Random) -> str:
    """A small shape inside a large one."""
    inner, outer, back = pick_colors(rng, 3)
    big, little = (
        rng.choice(["circle", "square", "hexagon"]),
        rng.choice(["star", "heart", "triangle", "circle", "cross"]),
    )
    x, y = rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)
    backdrop(canvas, tint(back, rng), rng)
    put_shape(canvas, big, tint(outer, rng), (x, y), rng.uniform(0.38, 0.44), rng)
    put_shape(canvas, little, tint(inner, rng), (x, y), rng.uniform(0.17, 0.21), rng)
    return f"{a(inner)} {little} inside {a(outer)} {big} on {back}"


def several_shapes(canvas: Canvas, rng: Random) -> str:
    """Three to six equal shapes on a loose grid."""
    (front, back), shape = pick_colors(rng, 2), rng.choice(["circle", "square", "triangle", "star", "heart", "diamond"])
    count = rng.randint(3, 6)
    spots = [(x, y) for y in (-0.29, 0, 0.29) for x in (-0.29, 0, 0.29)]
    backdrop(canvas, tint(back, rng), rng)
    for x, y in rng.sample(spots, count):
        spot = x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)
        put_shape(canvas, shape, tint(front, rng), spot, rng.uniform(0.11, 0.13), rng)
    return f"{['three', 'four', 'five', 'six'][count - 3]} {front} {shape}s on {a(back)} background"


# --- Patterns ----------------------------------------------------------------------------------------------------


def stripes(canvas: Canvas, rng: Random) -> str:
    """Parallel stripes of two colours."""
    one, two = pick_colors(rng, 2)
    word, angle = rng.choice([("vertical", 0.0), ("horizontal", 90.0), ("diagonal", rng.choice([45.0, -45.0]))])
    color, width = tint(two, rng), rng.uniform(0.05, 0.1)
    backdrop(canvas, tint(one, rng), rng)
    for step in range(-round(1.4 / width), round(1.4 / width)):
        middle = 2 * width * step
        shift = (middle * math.cos(math.radians(angle)), middle * math.sin(math.radians(angle)))
        canvas.fill(place(BOX, *shift, width / 2, 2.0, angle), color)
    return f"{word} {one} and {two} stripes"


def checks(canvas: Canvas, rng: Random) -> str:
    """A checkerboard, or a chequered cloth."""
    one, two = pick_colors(rng, 2)
    color, side = tint(two, rng), rng.uniform(0.12, 0.2)
    backdrop(canvas, tint(one, rng), rng)
    reach = round(1.2 / side)
    for row in range(-reach, reach):
        for column in range(-reach + row % 2, reach, 2):
            x, y = column * side, row * side
            if abs(x) < canvas.right + side and abs(y) < canvas.bottom + side:
                canvas.fill(box(x, y, x + side, y + side), color)
    return f"a checkerboard of {one} and {two} squares"


def dots(canvas: Canvas, rng: Random) -> str:
    """Polka dots."""
    one, two = pick_colors(rng, 2)
    color, step = tint(one, rng), rng.uniform(0.2, 0.28)
    backdrop(canvas, tint(two, rng), rng)
    for row in range(-5, 6):
        for column in range(-5, 6):
            canvas.fill(disc((column + row % 2 / 2) * step, row * step * 0.87, step * 0.27), color)
    return f"{one} polka dots on {two}"


def rings(canvas: Canvas, rng: Random) -> str:
    """Rings of two colours about one centre, as on a target."""
    one, two = pick_colors(rng, 2)
    colors, width = (tint(one, rng), tint(two, rng)), rng.uniform(0.07, 0.11)
    x, y = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)
    for step in range(round(1.3 / width), 0, -1):
        canvas.fill(disc(x, y, step * width), colors[step % 2])
    return f"{one} and {two} rings around {a(two)} centre"


def rays(canvas: Canvas, rng: Random) -> str:
    """A sunburst."""
    one, two = pick_colors(rng, 2)
    count, start, color = rng.randint(7, 11), rng.uniform(0, 40), tint(one, rng)
    x, y = rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.35)
    backdrop(canvas, tint(two, rng), rng)
    for step in range(count):
        angle = start + 360 * step / count
        canvas.fill([(x, y), *arc(x, y, 2.0, round(angle), round(angle + 180 / count))], color)
    canvas.fill(disc(x, y, 0.12), lighter(color, 0.35))
    return f"{one} rays bursting over {a(two)} background"


def color_gradient(canvas: Canvas, rng: Random) -> str:
    """A gradient between two colours."""
    one, two = pick_colors(rng, 2)
    word, angle = rng.choice([("top", 0.0), ("left", 90.0)])
    canvas.gradient(tint(one, rng), tint(two, rng), angle)
    return f"a smooth gradient from {one} at the {word} to {two} at the {'bottom' if word == 'top' else 'right'}"


def pattern(canvas: Canvas, rng: Random) -> str:
    """One of the patterns."""
    return rng.choice([stripes, checks, dots, rings, rays, color_gradient])(canvas, rng)


# --- Parts of scenes ---------------------------------------------------------------------------------------------


SKIES: dict[str, tuple[Color, Color]] = {
    "": ((96, 172, 226), (214, 236, 246)),
    " at sunset": ((118, 92, 156), (252, 176, 110)),
    " at night": (NAVY, NIGHT),
}


def sky(canvas: Canvas, rng: Random, time: str) -> None:
    """The sky of a time of day, at night with stars."""
    canvas.gradient(*SKIES[time])
    for _ in range(14 if time == " at night" else 0):
        spot = rng.uniform(-canvas.right, canvas.right), rng.uniform(-canvas.bottom, 0.1)
        canvas.fill(disc(*spot, rng.uniform(0.006, 0.012)), (255, 250, 225))


def cloud(canvas: Canvas, x: float, y: float, size: float, color: Color = (255, 255, 255)) -> None:
    """A cloud with a flat base."""
    for dx, dy, radius in [(-0.55, 0, 0.3), (-0.1, -0.2, 0.45), (0.4, -0.05, 0.36), (0.8, 0.06, 0.22)]:
        canvas.fill(disc(x + size * dx, y + size * dy, size * radius), color, 0.94)
    canvas.fill(box(x - 0.55 * size, y, x + 0.8 * size, y + 0.29 * size), color, 0.94)


def sun(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """A sun, or a full moon, and the glow around it."""
    canvas.fill(disc(x, y, 1.7 * size), lighter(color, 0.4), 0.5, 0.4 * size)
    canvas.fill(disc(x, y, size), color)


def ridge(canvas: Canvas, level: float, height: float, rng: Random) -> Points:
    """The outline of a range of hills, down to the lower edge."""
    speeds, starts = [rng.uniform(2, 4), rng.uniform(5, 9)], [rng.uniform(0, 6), rng.uniform(0, 6)]
    edge = canvas.right + 0.02
    xs = [-edge + 2 * edge * i / 60 for i in range(61)]
    tops = [
        (x, level - height * (math.sin(speeds[0] * x + starts[0]) + 0.4 * math.sin(speeds[1] * x + starts[1])))
        for x in xs
    ]
    return [*tops, (edge, canvas.bottom + 0.1), (-edge, canvas.bottom + 0.1)]


def hills(canvas: Canvas, color: Color, rng: Random, level: float = 0.12) -> None:
    """Three ranges of hills, the nearer the darker."""
    for step in range(3):
        canvas.fill(
            ridge(canvas, level + 0.13 * step, 0.07, rng), mix(lighter(color, 0.3), darker(color, 0.25), step / 2)
        )


def round_tree(canvas: Canvas, x: float, base: float, size: float, leaves: Color) -> None:
    """A tree with a round crown."""
    canvas.fill(box(x - 0.07 * size, base - 0.5 * size, x + 0.07 * size, base), TRUNK)
    for dx, dy, radius in [(-0.24, -0.62, 0.26), (0.24, -0.62, 0.26), (0, -0.84, 0.32), (0, -0.55, 0.26)]:
        canvas.fill(disc(x + size * dx, base + size * dy, size * radius), leaves)
    canvas.fill(disc(x - 0.1 * size, base - 0.88 * size, 0.14 * size), lighter(leaves), 0.7, 0.03 * size)


def pine_tree(canvas: Canvas, x: float, base: float, size: float, color: Color, snowy: bool) -> None:
    """A conifer of three tiers, if wanted with snow on them."""
    canvas.fill(box(x - 0.05 * size, base - 0.25 * size, x + 0.05 * size, base), TRUNK)
    for tier in range(3):
        top, low, wide = (
            base - size * (0.5 + 0.25 * tier),
            base - size * (0.15 + 0.24 * tier),
            size * (0.36 - 0.08 * tier),
        )
        canvas.fill([(x, top), (x + wide, low), (x - wide, low)], mix(color, lighter(color), tier / 3))
        if snowy:
            canvas.fill(
                [(x, top), (x + 0.4 * wide, top + 0.4 * (low - top)), (x - 0.4 * wide, top + 0.4 * (low - top))], SNOW
            )


# --- Scenes ------------------------------------------------------------------------------------------------------


def sunny_hills(canvas: Canvas, rng: Random) -> str:
    """The sun over green or yellow hills, with or without clouds."""
    land, cloudy = rng.choice(["green", "yellow", "teal"]), rng.random() < 0.5
    sky(canvas, rng, "")
    sun(canvas, rng.uniform(-0.3, 0.3), rng.uniform(-0.3, -0.12), rng.uniform(0.08, 0.12), COLORS["yellow"])
    for x in (-0.25, 0.3) if cloudy else ():
        cloud(canvas, x + rng.uniform(-0.1, 0.1), rng.uniform(-0.34, -0.1), rng.uniform(0.1, 0.16))
    hills(canvas, tint(land, rng), rng)
    return f"a yellow sun{' and white clouds' if cloudy else ''} over {land} hills"


def sunset_hills(canvas: Canvas, rng: Random) -> str:
    """A low sun behind dark hills."""
    land, ball = rng.choice(["purple", "blue", "brown"]), rng.choice(["red", "orange", "white"])
    sky(canvas, rng, " at sunset")
    sun(canvas, rng.uniform(-0.25, 0.25), rng.uniform(-0.02, 0.06), rng.uniform(0.12, 0.17), lighter(COLORS[ball], 0.1))
    hills(canvas, darker(tint(land, rng), 0.25), rng, 0.18)
    return f"{a(ball)} sun setting behind {land} hills"


def night_hills(canvas: Canvas, rng: Random) -> str:
    """The moon and stars over dark hills."""
    moon, x, y = rng.choice(["full", "crescent"]), rng.uniform(-0.28, 0.28), rng.uniform(-0.3, -0.15)
    sky(canvas, rng, " at night")
    if moon == "full":
        sun(canvas, x, y, 0.11, (250, 244, 214))
    else:
        canvas.fill(place(SHAPES["crescent"], x, y, 0.12, angle=rng.uniform(-40, 40)), (250, 240, 190))
    hills(canvas, (46, 58, 88), rng, 0.18)
    return f"a {moon} moon and stars over dark hills at night"


def mountains(canvas: Canvas, rng: Random) -> str:
    """Snowy peaks behind a field or a lake."""
    time, front = rng.choice(list(SKIES)), rng.choice(["a green field", "a blue lake"])
    stone = mix(tint("gray", rng), SKIES[time][0], 0.35)
    sky(canvas, rng, time)
    for x, size in [
        (-canvas.right, 0.5),
        (canvas.right, 0.52),
        (-0.24, 0.5),
        (0.26, 0.6),
        (0.0, rng.uniform(0.44, 0.62)),
    ]:
        top = 0.26 - size
        canvas.fill([(x, top), (x + 0.8 * size, 0.26), (x - 0.8 * size, 0.26)], mix(stone, (70, 80, 110), abs(x) / 2))
        snow = [(0, 0), (0.26, 0.33), (0.12, 0.27), (0.03, 0.37), (-0.1, 0.28), (-0.26, 0.33)]
        canvas.fill([(x + size * dx, top + size * dy) for dx, dy in snow], mix(SNOW, SKIES[time][1], 0.15))
    canvas.ground(0.25, mix(COLORS["blue"] if "lake" in front else GRASS, SKIES[time][0], 0.3))
    return f"snowy mountains behind {front}{time}"


def boat(canvas: Canvas, rng: Random) -> str:
    """A sailing boat at sea."""
    time = rng.choice([*SKIES, "", ""])
    hull, sail = pick(rng, "red brown white orange black"), rng.choice(["white", "red", "yellow", "pink", "orange"])
    x, size = rng.uniform(-0.1, 0.1), rng.uniform(0.9, 1.1)
    sky(canvas, rng, time)
    sun(canvas, -0.3 if x > 0 else 0.3, rng.uniform(-0.36, -0.26), 0.07, (255, 244, 200))
    canvas.ground(0.12, mix(tint("blue", rng), SKIES[time][0], 0.25))
    canvas.fill(box(x - 0.01, -0.34 * size, x + 0.01, 0.2), TRUNK)
    canvas.fill([(x + 0.025, -0.33 * size), (x + 0.25 * size, 0.1), (x + 0.025, 0.1)], tint(sail, rng))
    canvas.fill([(x - 0.025, -0.25 * size), (x - 0.18 * size, 0.1), (x - 0.025, 0.1)], darker(tint(sail, rng), 0.12))
    canvas.fill([(x - 0.28, 0.14), (x + 0.32, 0.14), (x + 0.21, 0.28), (x - 0.19, 0.28)], tint(hull, rng))
    waves(canvas, SKIES[time][1])
    return f"{a(hull)} boat with {a(sail)} sail on the sea{time}"


def waves(canvas: Canvas, color: Color) -> None:
    """Short bright arcs on the water."""
    for row, y in enumerate((0.27, 0.35, 0.43)):
        for column in range(-3, 4):
            x = 0.36 * column + 0.15 * row
            canvas.fill(arc(x, y, 0.1, 20, 160, 0.25) + arc(x, y - 0.012, 0.1, 160, 20, 0.25), color, 0.7)


def house(canvas: Canvas, rng: Random) -> str:
    """A house in the grass with a tree beside it, or in the snow."""
    wall, snowy = rng.choice(["white", "yellow", "pink", "blue", "gray", "orange"]), rng.random() < 0.25
    roof, time = pick(rng, "red brown blue black purple", wall), rng.choice(["", "", " at sunset", " at night"])
    side, word = rng.choice([(-1, "left"), (1, "right")])
    sky(canvas, rng, time)
    canvas.ground(0.2, mix(SNOW if snowy else GRASS, SKIES[time][0], 0.4 if time else 0.05))
    if snowy:
        pine_tree(canvas, 0.34 * side, 0.3, 0.5, mix(LEAF, NAVY, 0.3), True)
    else:
        round_tree(canvas, 0.35 * side, 0.31, 0.42, mix(LEAF, SKIES[time][0], 0.3 if time else 0.0))
    building(canvas, -0.09 * side, tint(wall, rng), tint(roof, rng), time)
    place_word = "in the snow" if snowy else "on green grass"
    return f"{a(wall)} house with {a(roof)} roof {place_word} and a tree on the {word}{time}"


def building(canvas: Canvas, x: float, wall: Color, roof: Color, time: str) -> None:
    """A house seen from the front; at night its windows are lit."""
    window = GLASS if not time else (255, 226, 120)
    canvas.fill(box(x + 0.12, -0.31, x + 0.19, -0.1), darker(wall, 0.35))
    canvas.fill(box(x - 0.24, -0.08, x + 0.24, 0.28), wall)
    canvas.fill(box(x - 0.24, -0.08, x + 0.24, -0.04), darker(wall, 0.2))
    canvas.fill([(x - 0.3, -0.06), (x, -0.34), (x + 0.3, -0.06)], roof)
    canvas.fill(box(x - 0.06, 0.08, x + 0.06, 0.28), darker(WOOD, 0.25))
    for dx in (-0.15, 0.15):
        canvas.fill(place(BOX, x + dx, 0.06, 0.062), lighter(wall, 0.8))
        canvas.fill(place(BOX, x + dx, 0.06, 0.048), window)
        canvas.fill(box(x + dx - 0.006, 0.01, x + dx + 0.006, 0.11), lighter(wall, 0.8))


def tree(canvas: Canvas, rng: Random) -> str:
    """One large tree, round with coloured leaves or fruit, or a conifer in the snow."""
    kind, x = rng.choice(["autumn", "fruit", "pine"]), rng.uniform(-0.08, 0.08)
    sky(canvas, rng, "")
    canvas.fill(ridge(canvas, 0.33, 0.04, rng), SNOW if kind == "pine" else GRASS)
    if kind == "pine":
        pine_tree(canvas, x, 0.42, 0.86, (52, 118, 84), True)
        return "a pine tree in the snow"
    leaves = rng.choice(["orange", "red", "yellow", "pink"]) if kind == "autumn" else "green"
    round_tree(canvas, x, 0.42, 0.74, tint(leaves, rng))
    if kind == "autumn":
        return f"a tree with {leaves} leaves on a green hill"
    fruit_color = rng.choice(["red", "orange", "yellow", "pink"])
    for dx, dy in [
        (-0.2, -0.06),
        (0.02, -0.24),
        (0.19, -0.08),
        (-0.08, 0.07),
        (0.1, 0.04),
        (-0.13, -0.2),
        (0.03, -0.08),
    ]:
        canvas.fill(disc(x + dx, dy, 0.036), tint(fruit_color, rng))
    return f"a green tree with {fruit_color} fruit on a green hill"


def forest(canvas: Canvas, rng: Random) -> str:
    """A row of conifers."""
    time, count = rng.choice(list(SKIES)), rng.randint(3, 5)
    sky(canvas, rng, time)
    snowy = rng.random() < 0.5
    canvas.ground(0.3, mix(SNOW if snowy else GRASS, SKIES[time][0], 0.35 if time else 0.0))
    for step in range(count):
        x = -0.36 + 0.72 * step / (count - 1)
        color = mix((52, 124, 84), SKIES[time][0], rng.uniform(0.1, 0.35))
        pine_tree(canvas, x, rng.uniform(0.34, 0.4), rng.uniform(0.55, 0.78), color, snowy)
    return f"{['three', 'four', 'five'][count - 3]} {'snowy ' if snowy else ''}pine trees{time}"


# --- Things ------------------------------------------------------------------------------------------------------


def face(canvas: Canvas, rng: Random) -> str:
    """A round face with a mood, if wanted with glasses."""
    skin, mood, glasses = (
        pick(rng, "yellow pink green orange blue white"),
        rng.choice(list(MOUTHS)),
        rng.random() < 0.35,
    )
    back, x, y = (
        pick(rng, "blue purple red teal orange green pink", skin),
        rng.uniform(-0.05, 0.05),
        rng.uniform(-0.04, 0.04),
    )
    backdrop(canvas, tint(back, rng), rng)
    canvas.ball(x, y, 0.38, 0.38, tint(skin, rng))
    for side in (-1, 1):
        if glasses:
            canvas.fill(disc(x + 0.145 * side, y - 0.06, 0.115), COLORS["black"])
            canvas.fill(disc(x + 0.145 * side, y - 0.06, 0.085), COLORS["white"])
        canvas.fill(disc(x + 0.14 * side, y - 0.06, 0.038, 0.05), COLORS["black"])
    MOUTHS[mood](canvas, x, y)
    return f"a {mood} {skin} face{' with round glasses' if glasses else ''} on {back}"


MOUTHS: dict[str, Callable[[Canvas, float, float], None]] = {
    "smiling": lambda canvas, x, y: canvas.stroke(arc(x, y + 0.04, 0.18, 25, 155), COLORS["black"], 0.032),
    "sad": lambda canvas, x, y: canvas.stroke(arc(x, y + 0.27, 0.13, 205, 335), COLORS["black"], 0.032),
    "surprised": lambda canvas, x, y: canvas.fill(disc(x, y + 0.18, 0.06, 0.085), COLORS["black"]),
    "laughing": lambda canvas, x, y: canvas.fill(arc(x, y + 0.08, 0.19, 0, 180), (130, 34, 46)),
}


def leaf(canvas: Canvas, x: float, y: float, size: float, angle: float) -> None:
    """A pointed leaf whose stalk is at (x, y)."""
    half = [(0.0, 0.0), (0.2, -0.2), (0.28, -0.5), (0.18, -0.8), (0.0, -1.1)]
    canvas.fill(place(mirrored(half), x, y, size, angle=angle), LEAF)


def apple(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """An apple with its stalk and leaf."""
    for side in (-1, 1):
        canvas.solid(disc(x + 0.32 * side * size, y, 0.68 * size, 0.84 * size), darker(color, 0.08))
    for side in (-1, 1):
        canvas.fill(disc(x + 0.3 * side * size, y - 0.04 * size, 0.6 * size, 0.76 * size), color, 1, 0.04 * size)
    canvas.fill(disc(x - 0.45 * size, y - 0.35 * size, 0.13 * size, 0.2 * size, 30), lighter(color, 0.75), 0.8)
    canvas.stroke(
        [(x, y - 0.55 * size), (x + 0.05 * size, y - 0.85 * size), (x + 0.12 * size, y - 1.08 * size)],
        TRUNK,
        0.1 * size,
    )
    leaf(canvas, x + 0.08 * size, y - 0.8 * size, 0.6 * size, 65)


def orange(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """A round fruit with a small leaf."""
    canvas.ball(x, y, 0.9 * size, 0.88 * size, color)
    canvas.fill(disc(x, y - 0.78 * size, 0.09 * size, 0.06 * size), darker(LEAF))
    leaf(canvas, x, y - 0.78 * size, 0.5 * size, 55)


def lemon(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """A lemon, lying."""
    canvas.solid(place(SHAPES["diamond"], x, y, 1.22 * size, 0.5 * size, -20), darker(color, 0.1))
    canvas.ball(x, y, 0.9 * size, 0.66 * size, color, -20)


def pear(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """A pear with its stalk."""
    half = [
        (0.0, -0.95),
        (0.22, -0.88),
        (0.34, -0.66),
        (0.38, -0.3),
        (0.54, 0.0),
        (0.7, 0.36),
        (0.6, 0.72),
        (0.3, 0.93),
        (0.0, 0.97),
    ]
    canvas.stroke([(x, y - 0.9 * size), (x + 0.08 * size, y - 1.2 * size)], TRUNK, 0.1 * size)
    canvas.solid(place(mirrored(smooth(half)), x, y, size), color)
    canvas.fill(disc(x - 0.25 * size, y + 0.2 * size, 0.12 * size, 0.28 * size, 20), lighter(color, 0.7), 0.7)
    leaf(canvas, x + 0.04 * size, y - 1.0 * size, 0.5 * size, 70)


def smooth(points: Points) -> Points:
    """A line with its corners cut three times; its ends stay."""
    for _ in range(3):
        cut = [mid for p, q in pairwise(points) for mid in (along(p, q, 0.25), along(p, q, 0.75))]
        points = [points[0], *cut, points[-1]]
    return points


def along(p: Point, q: Point, share: float) -> Point:
    """The point that is `share` of the way from p to q."""
    return p[0] + (q[0] - p[0]) * share, p[1] + (q[1] - p[1]) * share


def banana(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """A banana."""
    outer, inner = arc(x, y - 0.55 * size, 1.15 * size, 5, 160), arc(x, y - 0.75 * size, 0.98 * size, 160, 12)
    canvas.solid(outer + inner, color)
    canvas.fill(disc(*outer[0], 0.1 * size), TRUNK)
    canvas.fill(disc(*outer[-1], 0.08 * size), TRUNK)


def strawberry(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """A strawberry with its seeds."""
    half = [(0.0, -0.72), (0.5, -0.78), (0.85, -0.45), (0.72, 0.1), (0.4, 0.62), (0.0, 1.0)]
    canvas.solid(place(mirrored(smooth(half)), x, y, size), color)
    for dx, dy in [(-0.4, -0.2), (0, -0.25), (0.4, -0.2), (-0.22, 0.1), (0.22, 0.1), (0, 0.42)]:
        canvas.fill(disc(x + dx * size, y + dy * size, 0.05 * size, 0.08 * size), lighter(COLORS["yellow"]))
    for angle in (-80, -40, 0, 40, 80):
        leaf(canvas, x, y - 0.62 * size, 0.5 * size, angle)


def cherries(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """Two cherries on their stalks."""
    for side in (-1, 1):
        canvas.stroke(
            [
                (x + 0.1 * size, y - 0.95 * size),
                (x + 0.3 * side * size, y - 0.4 * size),
                (x + 0.5 * side * size, y + 0.2 * size),
            ],
            LEAF,
            0.07 * size,
        )
        canvas.ball(x + 0.52 * side * size, y + 0.45 * size, 0.45 * size, 0.45 * size, color)
    leaf(canvas, x + 0.1 * size, y - 0.95 * size, 0.7 * size, 75)


def melon(canvas: Canvas, x: float, y: float, size: float, color: Color) -> None:
    """A slice of watermelon."""
    top = y - 0.45 * size
    for radius, layer in [(1.15, (58, 130, 70)), (1.02, (214, 236, 184)), (0.94, color)]:
        (canvas.solid if radius > 1.1 else canvas.fill)(arc(x, top, radius * size, 0, 180), layer)
    for dx, dy in [(-0.5, 0.2), (-0.18, 0.25), (0.18, 0.25), (0.5, 0.2), (-0.32, 0.5), (0.0, 0.6), (0.32, 0.5)]:
        canvas.fill(disc(x + dx * size, top + dy * size, 0.045 * size, 0.075 * size), COLORS["black"])


FRUITS: dict[str, tuple[str, Callable[[Canvas, float, float, float, Color], None]]] = {
    "apple": ("red green yellow", apple),
    "orange": ("orange", orange),
    "plum": ("purple", orange),
    "lemon": ("yellow", lemon),
    "pear": ("green yellow", pear),
    "banana": ("yellow", banana),
    "strawberry": ("red", strawberry),
    "pair of cherries": ("red", cherries),
    "slice of watermelon": ("red", melon),
}


def fruit(canvas: Canvas, rng: Random) -> str:
    """A fruit on a coloured background, on a plate or on a wooden table."""
    name, spot = rng.choice(list(FRUITS)), (rng.uniform(-0.05, 0.05), rng.uniform(-0.02, 0.05))
    colors, draw = FRUITS[name]
    color, setting = pick(rng, colors), rng.choice(["background", "background", "plate", "table"])
    back = pick(
        rng, "white pink blue teal purple yellow orange gray", f"{color} {'white' if setting == 'plate' else color}"
    )
    backdrop(canvas, tint(back, rng), rng)
    if setting == "plate":
        canvas.solid(disc(0, 0, 0.48), COLORS["white"])
        canvas.fill(disc(0, 0, 0.37), (228, 228, 226))
    if setting == "table":
        canvas.ground(0.16, WOOD)
    draw(canvas, *spot, rng.uniform(0.25, 0.29), tint(color, rng))
    words = name if name in ("orange", "plum", "pair of cherries", "slice of watermelon") else f"{color} {name}"
    settings = {"background": f"on {a(back)} background", "plate": "on a white plate", "table": "on a wooden table"}
    return f"{a(words)} {settings[setting]}"


def flower(canvas: Canvas, rng: Random) -> str:
    """A flower on its stem."""
    petal = rng.choice(["pink", "red", "white", "purple", "orange", "blue", "yellow"])
    heart_color, back = pick(rng, "yellow orange brown", petal), pick(rng, "blue teal yellow pink purple white", petal)
    x, y, count, turn = rng.uniform(-0.06, 0.06), rng.uniform(-0.14, -0.06), rng.randint(5, 9), rng.uniform(0, 60)
    backdrop(canvas, lighter(tint(back, rng), 0.2), rng)
    canvas.stroke(smooth([(x, y), (x + 0.03, 0.2), (0.0, canvas.bottom + 0.05)]), LEAF, 0.035)
    leaf(canvas, x + 0.01, 0.36, 0.24, 50)
    leaf(canvas, x + 0.01, 0.32, 0.22, -55)
    for step in range(count):
        angle = math.radians(turn + 360 * step / count)
        spot = x + 0.19 * math.cos(angle), y + 0.19 * math.sin(angle)
        canvas.fill(
            disc(*spot, 0.15, 0.62 / count + 0.01, math.degrees(angle)),
            mix(tint(petal, rng), (90, 60, 100), 0.12 * (step % 2)),
        )
    canvas.ball(x, y, 0.1, 0.1, tint(heart_color, rng))
    return f"{a(petal)} flower with {a(heart_color)} centre on {a(back)} background"


def fish(canvas: Canvas, rng: Random) -> str:
    """A fish that swims to one side, with bubbles."""
    body, fin = pick(rng, "orange red yellow pink white"), rng.choice(["purple", "red", "orange", "white"])
    (side, word), y, size = rng.choice([(-1, "left"), (1, "right")]), rng.uniform(-0.08, 0.08), rng.uniform(0.9, 1.08)
    water, color = tint(rng.choice(["blue", "teal"]), rng), tint(fin, rng)
    canvas.gradient(lighter(water, 0.35), darker(water, 0.3))
    canvas.fill(ridge(canvas, 0.43, 0.02, rng), (226, 204, 150))
    tail = [(-0.2, 0.0), (-0.42, -0.17), (-0.36, 0.0), (-0.42, 0.17)]
    dorsal = [(-0.12, -0.13), (-0.1, -0.27), (0.12, -0.13)]
    for part in (tail, dorsal):
        canvas.fill([(side * size * px, y + size * py) for px, py in part], color)
    canvas.ball(0.02 * side, y, 0.29 * size, 0.18 * size, tint(body, rng))
    canvas.fill([(side * size * px, y + size * py) for px, py in [(-0.1, 0.03), (0.06, 0.02), (-0.08, 0.14)]], color)
    canvas.fill(disc(0.18 * side, y - 0.04, 0.042), (255, 255, 255))
    canvas.fill(disc(0.19 * side, y - 0.04, 0.022), COLORS["black"])
    for step in range(3):
        canvas.fill(
            disc(side * (0.38 + 0.03 * (step % 2)), y - 0.1 - 0.1 * step, 0.016 + 0.006 * step), (255, 255, 255), 0.65
        )
    return f"{a(body)} fish swimming to the {word} under water"


def car(canvas: Canvas, rng: Random) -> str:
    """A car on a road."""
    paint, time = (
        pick(rng, "red blue yellow green orange white purple"),
        rng.choice(["", "", " at sunset", " at night"]),
    )
    side, x, color = rng.choice([-1, 1]), rng.uniform(-0.04, 0.04), tint(paint, rng)
    sky(canvas, rng, time)
    hills(canvas, mix(COLORS["green"], SKIES[time][0], 0.5 if time else 0.1), rng, -0.02)
    canvas.ground(0.22, (88, 90, 100))
    for step in range(-4, 5):
        canvas.fill(box(0.3 * step, 0.385, 0.3 * step + 0.15, 0.405), (240, 236, 220))
    cabin = [(-0.24, -0.03), (-0.16, -0.19), (0.08, -0.19), (0.2, -0.03)]
    canvas.fill([(x + side * px, py) for px, py in cabin], darker(color, 0.15))
    for left, right, slant in [(-0.18, -0.05, 0.05), (-0.02, 0.13, -0.07)]:
        glass = [(left, -0.04), (left + max(slant, 0), -0.155), (right + min(slant, 0), -0.155), (right, -0.04)]
        canvas.fill([(x + side * px, py) for px, py in glass], GLASS)
    body = smooth([(-0.38, 0.2), (-0.4, 0.0), (-0.3, -0.05), (0.2, -0.05), (0.4, 0.02), (0.4, 0.2)])
    canvas.solid([(x + side * px, py) for px, py in body], color)
    canvas.fill(disc(x + 0.36 * side, 0.07, 0.03), (255, 240, 170))
    for wheel in (-0.22, 0.22):
        canvas.fill(disc(x + wheel, 0.2, 0.095), (36, 36, 42))
        canvas.fill(disc(x + wheel, 0.2, 0.045), (190, 194, 200))
    return f"{a(paint)} car on a road{time}"


def balloon(canvas: Canvas, rng: Random) -> str:
    """A hot air balloon of two colours."""
    one = pick(rng, "red orange yellow purple pink")
    two = pick(rng, "white yellow blue green red", one)
    x, y = rng.uniform(-0.1, 0.1), rng.uniform(-0.14, -0.08)
    colors, basket = (tint(one, rng), tint(two, rng)), y + 0.5
    sky(canvas, rng, "")
    cloud(canvas, -0.3, rng.uniform(0.15, 0.4), 0.14)
    cloud(canvas, 0.28, rng.uniform(-0.4, 0.4), 0.12)
    for side in (-0.15, 0.15):
        canvas.stroke([(x + side, y + 0.22), (x + 0.35 * side, basket)], TRUNK, 0.012)
    for step, wide in enumerate((1.0, 0.68, 0.3)):
        half = [
            (0.0, -0.3),
            (0.2 * wide, -0.28),
            (0.32 * wide, -0.08),
            (0.27 * wide, 0.12),
            (0.12 * wide + 0.02, 0.32),
            (0.0, 0.32),
        ]
        canvas.fill(place(mirrored(smooth(half)), x, y, 1.0), colors[step % 2])
    canvas.fill(box(x - 0.06, basket - 0.02, x + 0.06, basket + 0.07), WOOD)
    return f"{a(one)} and {two} hot air balloon in a blue sky"


def planet(canvas: Canvas, rng: Random) -> str:
    """A planet among stars, if wanted with a ring."""
    color, ring = pick(rng, "orange red blue teal purple pink yellow"), rng.random() < 0.6
    size, x, y, tilt = rng.uniform(0.2, 0.26), rng.uniform(-0.08, 0.08), rng.uniform(-0.06, 0.06), rng.uniform(-30, 30)
    sky(canvas, rng, " at night")
    shade = tint(color, rng)
    canvas.ball(x, y, size, size, shade)
    for dy, wide in ((-0.35, 0.8), (0.1, 0.88), (0.45, 0.72)):
        canvas.fill(place(disc(0, dy, wide, 0.09), x, y, size, angle=tilt), lighter(shade, 0.4), 0.4)
    if ring:
        front = place([*arc(0, 0, 1.75, -12, 192, 0.3), *arc(0, 0, 1.4, 192, -12, 0.25)], x, y, size, angle=tilt)
        canvas.fill(front, lighter(shade, 0.55), 0.95)
    return f"{a(color)} planet{' with a ring' if ring else ''} among stars"


def rocket(canvas: Canvas, rng: Random) -> str:
    """A rocket on its way through the night."""
    body, fin = pick(rng, "white gray yellow pink"), rng.choice(["red", "orange", "teal"])
    tilt, x, y = rng.uniform(-40, 40), rng.uniform(-0.05, 0.05), rng.uniform(-0.06, 0.02)
    sky(canvas, rng, " at night")
    color = tint(fin, rng)
    hull = mirrored(smooth([(0.0, -0.4), (0.12, -0.22), (0.13, 0.05), (0.08, 0.24), (0.0, 0.24)]))
    parts: list[tuple[Points, Color]] = [
        (mirrored([(0.07, 0.22), (0.04, 0.34), (0.0, 0.42)]), COLORS["yellow"]),
        (mirrored([(0.1, 0.02), (0.23, 0.2), (0.22, 0.3), (0.06, 0.22)]), color),
        (hull, tint(body, rng)),
        (mirrored([(0.0, -0.38), (0.05, -0.3), (0.085, -0.22), (0.0, -0.22)]), color),
        (disc(0, -0.08, 0.062), darker(color, 0.3)),
        (disc(0, -0.08, 0.043), GLASS),
    ]
    for points, paint in parts:
        canvas.fill(place(points, x, y, 1.0, angle=tilt), paint)
    return f"{a(body)} rocket with {fin} fins flying among stars"


def butterfly(canvas: Canvas, rng: Random) -> str:
    """A butterfly with spotted wings."""
    wing = pick(rng, "blue orange purple pink yellow red")
    back = pick(rng, "white green yellow teal pink", wing)
    color, spot, tilt = tint(wing, rng), tint(pick(rng, "white yellow black", wing), rng), rng.uniform(-25, 25)
    backdrop(canvas, lighter(tint(back, rng), 0.15), rng)
    for side in (-1, 1):
        for dx, dy, wide, high, lean in [(0.2, -0.13, 0.22, 0.15, -35), (0.16, 0.15, 0.16, 0.12, 40)]:
            canvas.solid(place(disc(side * dx, dy, wide, high, side * lean), 0, 0, 1.0, angle=tilt), color)
            canvas.fill(place(disc(1.2 * side * dx, 1.2 * dy, 0.06), 0, 0, 1.0, angle=tilt), spot)
        feeler = smooth([(0, -0.18), (side * 0.04, -0.3), (side * 0.12, -0.36)])
        canvas.stroke(place(feeler, 0, 0, 1.0, angle=tilt), COLORS["black"], 0.014)
    canvas.fill(place(disc(0, 0, 0.035, 0.22), 0, 0, 1.0, angle=tilt), COLORS["black"])
    return f"{a(wing)} butterfly on {a(back)} background"


# --- All of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A drawn picture, its caption, what kind of picture it is, and the colours that the caption names."""

    image: Image.Image
    caption: str
    kind: str
    colors: list[str]


KINDS: dict[Callable[[Canvas, Random], str], int] = {  # how many of every hundred pictures
    one_shape: 7,
    two_shapes: 10,
    inside_shape: 5,
    several_shapes: 7,
    pattern: 12,
    sunny_hills: 3,
    sunset_hills: 3,
    night_hills: 3,
    mountains: 3,
    boat: 5,
    house: 5,
    tree: 4,
    forest: 2,
    face: 5,
    fruit: 8,
    flower: 4,
    fish: 3,
    car: 3,
    balloon: 2,
    planet: 2,
    rocket: 2,
    butterfly: 2,
}


def draw_picture(index: int, seed: int) -> Picture:
    """The picture with this number: the same for the same seed, whatever else is drawn."""
    rng, hundred = Random(f"{seed}/{index}"), index // 100
    deck = Random(f"{seed}/kinds/{hundred}").sample(list(KINDS), 100, counts=list(KINDS.values()))
    canvas = Canvas(*rng.choice(LARGE_SIZES if rng.random() < LARGE_SHARE else SIZES))
    draw = deck[index % 100]
    caption = draw(canvas, rng)
    return Picture(canvas.finished(), caption, draw.__name__, [word for word in caption.split() if word in COLORS])


def draw_pictures(count: int, seed: int) -> list[Picture]:
    """`count` pictures."""
    return [draw_picture(index, seed) for index in range(count)]
