"""Generated arithmetic stories with worked solutions, and the same stories told in other words."""

import random
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from klball.data.builtin import Row, row_of

NAMES = [
    *("Ada", "Ben", "Carla", "Deniz", "Emma", "Farid", "Greta", "Hugo"),
    *("Ines", "Jonas", "Kofi", "Lena", "Mina", "Noah", "Olga", "Pavel"),
]
THINGS = [
    *("apples", "books", "coins", "marbles", "pencils"),
    *("shells", "stamps", "stickers", "tickets", "tomatoes"),
]
PLACES = ["a bakery", "a farm", "a library", "a market", "a museum", "a school", "a workshop"]
NUMBER = r"\d+"
LEVELS = {0: (), 1: ("sharing",), 2: ("boxes", "savings", "shop", "journey", "ages")}
MOST = 20_000  # distinct stories of each kind there surely are
WORDS = {"place": r"an? \w+", **dict.fromkeys(("name", "thing", "first", "second", "third"), r"\w+")}

Story = tuple[dict[str, Any], str]  # what stands in its fields, the answer

# A telling takes one wording of every part, in order; the first of each part is the original. Numbers stay
# digits and occur as often as in the original. A wording a line, a blank line between parts.
TOLD = """
# boxes
{name} packs {thing} into {boxes} boxes with {each} {thing} in each box.
{name} fills {boxes} boxes, putting {each} {thing} into each box.
{name} has {boxes} boxes and packs {each} {thing} into each of them.
There are {boxes} boxes, and {name} packs {each} {thing} into each one.
{name} packs {boxes} boxes so that each box holds {each} {thing}.

Then {name} gives {given} {thing} to a friend.
Afterwards {name} gives {given} {thing} to a friend.
After that, {name} hands {given} {thing} to a friend.
Later {name} gives a friend {given} {thing}.
A friend then receives {given} {thing} from {name}.

How many {thing} does {name} have now?
How many {thing} does {name} have left?
How many {thing} are left for {name}?
Work out how many {thing} {name} still has.
Find the number of {thing} that {name} now has.

# savings
{name} has {start} dollars and saves {weekly} dollars every week for {weeks} weeks.
{name} starts with {start} dollars and saves {weekly} dollars a week for {weeks} weeks.
With {start} dollars at first, {name} saves {weekly} dollars each week for {weeks} weeks.
For {weeks} weeks {name} saves {weekly} dollars a week, having {start} dollars already.
{name} owns {start} dollars and, for {weeks} weeks, adds {weekly} dollars every week.

After that {name} buys a lamp for {price} dollars.
Then {name} buys a lamp that costs {price} dollars.
Afterwards {name} spends {price} dollars on a lamp.
Next, {name} pays {price} dollars for a lamp.
A lamp for {price} dollars is then bought by {name}.

How many dollars remain?
How many dollars are left?
How many dollars does {name} have left?
Work out how many dollars remain.
Find the number of dollars that {name} still has.

# sharing
{first} brings {most} {thing} and {second} brings {extra} {thing}.
{first} comes with {most} {thing}, and {second} comes with {extra} {thing}.
{first} contributes {most} {thing} and {second} contributes {extra} {thing}.
There are {most} {thing} from {first} and {extra} {thing} from {second}.
While {first} brings {most} {thing}, {second} brings {extra} {thing}.

They share all of them equally among {people} people.
All of them are shared equally among {people} people.
They divide all of them evenly between {people} people.
Everything is then split into equal shares for {people} people.
The whole lot is divided equally among {people} people.

How many {thing} does each person get?
How many {thing} are there for each person?
How many {thing} does every person receive?
Work out how many {thing} each person gets.
Find the number of {thing} that each person receives.

# shop
At {place} {morning} {thing} are sold in the morning and {factor} times as many in the afternoon.
In the morning {place} sells {morning} {thing}, in the afternoon {factor} times as many.
One morning {place} sells {morning} {thing}, and that afternoon {factor} times as many.
There is {place} that sells {morning} {thing} in the morning and {factor} times that number in the afternoon.
During the morning {morning} {thing} are sold at {place}, and {factor} times as many during the afternoon.

Each costs {price} dollars.
Each one costs {price} dollars.
The price of each is {price} dollars.
Each of them is sold for {price} dollars.
Every single one costs {price} dollars.

How many dollars are earned that day?
How many dollars come in on that day?
How many dollars does that day bring in?
Work out how many dollars are earned that day.
Find the number of dollars earned over that day.

# journey
{name} travels {hours} hours at {speed} kilometres an hour,
{name} travels for {hours} hours at a speed of {speed} kilometres an hour,
For {hours} hours {name} travels at {speed} kilometres per hour,
{name} is on the way for {hours} hours at {speed} kilometres an hour,
At {speed} kilometres an hour {name} travels for {hours} hours,

and then {rest} kilometres more.
and after that another {rest} kilometres.
and then covers {rest} more kilometres.
followed by a further {rest} kilometres.
and then goes on for {rest} kilometres.

How far is the whole journey?
How long is the whole journey in kilometres?
How many kilometres is the journey in all?
Work out the length of the whole journey.
Find the total distance of the journey.

# ages
{first} is {age} years old.
{first} is aged {age}.
The age of {first} is {age} years.
{first} has reached the age of {age}.
{first}'s age is {age} years.

{second} is {older} years older than {first}, and {third} is {factor} times as old as {second}.
{second} is older than {first} by {older} years, and {third} is {factor} times as old as {second}.
{second} is {older} years older than {first}, while {third}'s age is {factor} times {second}'s.
{first} is {older} years younger than {second}, and {third}'s age is {factor} times {second}'s age.
{second} was born {older} years before {first}, and {third} is {factor} times as old as {second}.

How old are the three together?
How old are all three of them together?
What is the sum of the three ages?
Work out the total of their three ages.
Find the combined age of the three.
"""
TELLINGS = {
    kind: [part.splitlines() for part in parts.strip().split("\n\n")]
    for kind, _, parts in (story.partition("\n") for story in TOLD.split("\n# ")[1:])
}


def rows(split: str, level: float = 0, count: float = 1_000, hasty: float = 0) -> list[Row]:
    """Stories of a split, each with its own seed; level: 1 for the easier kinds, 2 for the harder, 0 for all.

    hasty: the share of them that are answered without their last step, and so wrongly.

    Raises ValueError for another level, a count that is no whole number from 1 to MOST, and no share.
    """
    if level not in LEVELS:
        raise ValueError(f"word-problems: level must be one of {', '.join(map(str, LEVELS))}, not {level:g}")
    if not (1 <= count <= MOST and count == int(count)):
        raise ValueError(f"word-problems: count must be a whole number from 1 to {MOST}, not {count:g}")
    if not 0 <= hasty <= 1:
        raise ValueError(f"word-problems: hasty must be from 0 to 1, not {hasty:g}")
    found = word_problems(int(count), 2 if split == "test" else 1, LEVELS[int(level)])
    rng = random.Random(split)
    return [
        row_of(row["question"], _without_last_step(row["answer"])) if rng.random() < hasty else row
        for row in found
    ]


def _without_last_step(answer: str) -> str:
    steps = answer.split(". ")[:-2]  # the last one is the answer itself
    return ". ".join([*steps, f"The answer is {re.findall(NUMBER, steps[-1])[-1]}."])


def word_problems(count: int, seed: int, kinds: Sequence[str] = ()) -> list[Row]:
    """`count` distinct arithmetic stories with worked solutions, the same for the same seed."""
    rng = random.Random(seed)
    found: dict[str, Row] = {}
    while len(found) < count:
        kind = rng.choice(list(kinds or STORIES))
        fields, answer = STORIES[kind](rng)
        question = _original(kind).format(**fields)
        found.setdefault(question, row_of(question, answer))
    return list(found.values())


def _original(kind: str) -> str:
    return " ".join(wordings[0] for wordings in TELLINGS[kind])


def _pattern(kind: str) -> re.Pattern[str]:
    """What matches the original with any words and numbers in it; equal fields have equal values."""
    pattern, seen = "", set()
    for text, field in re.findall(r"([^{]*)(?:\{(\w+)\})?", _original(kind)):
        pattern += re.escape(text)
        if field:
            value = WORDS.get(field, NUMBER)
            pattern += f"(?P={field})" if field in seen else f"(?P<{field}>{value})"
            seen.add(field)
    return re.compile(pattern)


def _boxes(rng: random.Random) -> Story:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    boxes, each, given = rng.randint(3, 12), rng.randint(4, 20), rng.randint(2, 9)
    total = boxes * each
    return (
        {"name": name, "thing": thing, "boxes": boxes, "each": each, "given": given},
        f"The boxes hold {boxes} * {each} = {total} {thing}. After the gift {total} - {given} = "
        f"{total - given} {thing} are left. The answer is {total - given}.",
    )


def _savings(rng: random.Random) -> Story:
    name, weeks = rng.choice(NAMES), rng.randint(3, 15)
    weekly, start = rng.randint(4, 25), rng.randint(5, 60)
    total = start + weeks * weekly
    price = rng.randint(5, min(40, total))
    return (
        {"name": name, "start": start, "weekly": weekly, "weeks": weeks, "price": price},
        f"In {weeks} weeks {name} saves {weeks} * {weekly} = {weeks * weekly} dollars. With the first "
        f"{start} dollars that makes {total}. After the lamp {total} - {price} = {total - price} "
        f"dollars remain. The answer is {total - price}.",
    )


def _sharing(rng: random.Random) -> Story:
    first, second = rng.sample(NAMES, 2)
    thing, people = rng.choice(THINGS), rng.randint(3, 9)
    share, extra = rng.randint(3, 15), rng.randint(1, 8)
    total = people * share
    most = total - extra
    return (
        {"first": first, "second": second, "thing": thing, "most": most, "extra": extra, "people": people},
        f"Together they have {most} + {extra} = {total} {thing}. Each person gets {total} / "
        f"{people} = {share} {thing}. The answer is {share}.",
    )


def _shop(rng: random.Random) -> Story:
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    morning, factor, price = rng.randint(5, 30), rng.randint(2, 4), rng.randint(2, 6)
    afternoon = morning * factor
    total = morning + afternoon
    return (
        {"place": place, "thing": thing, "morning": morning, "factor": factor, "price": price},
        f"In the afternoon {factor} * {morning} = {afternoon} {thing} are sold, so {morning} + "
        f"{afternoon} = {total} in all. They earn {total} * {price} = {total * price} dollars. "
        f"The answer is {total * price}.",
    )


def _journey(rng: random.Random) -> Story:
    name, speed, hours = rng.choice(NAMES), rng.randint(12, 90), rng.randint(2, 6)
    rest = rng.randint(5, 40)
    distance = speed * hours
    return (
        {"name": name, "hours": hours, "speed": speed, "rest": rest},
        f"The first part is {hours} * {speed} = {distance} kilometres. The whole journey is "
        f"{distance} + {rest} = {distance + rest} kilometres. The answer is {distance + rest}.",
    )


def _ages(rng: random.Random) -> Story:
    first, second, third = rng.sample(NAMES, 3)
    age, older, factor = rng.randint(4, 15), rng.randint(2, 9), rng.randint(2, 4)
    oldest = (age + older) * factor
    people = {"first": first, "second": second, "third": third}
    return (
        {**people, "age": age, "older": older, "factor": factor},
        f"{second} is {age} + {older} = {age + older} years old. {third} is {factor} * {age + older} "
        f"= {oldest}. Together they are {age} + {age + older} + {oldest} = "
        f"{age + age + older + oldest}. The answer is {age + age + older + oldest}.",
    )


STORIES: dict[str, Callable[[random.Random], Story]] = {
    **{"boxes": _boxes, "savings": _savings, "sharing": _sharing},
    **{"shop": _shop, "journey": _journey, "ages": _ages},
}
REWORDINGS = {
    kind: (_pattern(kind), [" ".join(parts) for parts in product(*TELLINGS[kind])][1:]) for kind in TELLINGS
}
