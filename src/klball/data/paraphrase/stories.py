"""The arithmetic stories told in other words: one entry a kind, each part in several wordings.

A telling takes one wording of every part, in order; the first of each part is the original. Numbers
stay digits and occur as often as in the original.
"""

THING, NAME, NUMBER = r"(?P<thing>\w+)", r"(?P<name>\w+)", r"\d+"

STORIES: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "boxes": (
        rf"{NAME} packs {THING} into (?P<boxes>\d+) boxes with (?P<each>\d+) (?P=thing) in each box\. Then "
        r"(?P=name) gives (?P<given>\d+) (?P=thing) to a friend\. "
        r"How many (?P=thing) does (?P=name) have now\?",
        (
            (
                "{name} packs {thing} into {boxes} boxes with {each} {thing} in each box.",
                "{name} fills {boxes} boxes, putting {each} {thing} into each box.",
                "{name} has {boxes} boxes and packs {each} {thing} into each of them.",
                "There are {boxes} boxes, and {name} packs {each} {thing} into each one.",
                "{name} packs {boxes} boxes so that each box holds {each} {thing}.",
            ),
            (
                "Then {name} gives {given} {thing} to a friend.",
                "Afterwards {name} gives {given} {thing} to a friend.",
                "After that, {name} hands {given} {thing} to a friend.",
                "Later {name} gives a friend {given} {thing}.",
                "A friend then receives {given} {thing} from {name}.",
            ),
            (
                "How many {thing} does {name} have now?",
                "How many {thing} does {name} have left?",
                "How many {thing} are left for {name}?",
                "Work out how many {thing} {name} still has.",
                "Find the number of {thing} that {name} now has.",
            ),
        ),
    ),
    "savings": (
        rf"{NAME} has (?P<start>\d+) dollars and saves (?P<weekly>\d+) dollars every week for "
        r"(?P<weeks>\d+) weeks\. After that (?P=name) buys a lamp for (?P<price>\d+) dollars\. "
        r"How many dollars remain\?",
        (
            (
                "{name} has {start} dollars and saves {weekly} dollars every week for {weeks} weeks.",
                "{name} starts with {start} dollars and saves {weekly} dollars a week for {weeks} weeks.",
                "With {start} dollars at first, {name} saves {weekly} dollars each week for {weeks} weeks.",
                "For {weeks} weeks {name} saves {weekly} dollars a week, having {start} dollars already.",
                "{name} owns {start} dollars and, for {weeks} weeks, adds {weekly} dollars every week.",
            ),
            (
                "After that {name} buys a lamp for {price} dollars.",
                "Then {name} buys a lamp that costs {price} dollars.",
                "Afterwards {name} spends {price} dollars on a lamp.",
                "Next, {name} pays {price} dollars for a lamp.",
                "A lamp for {price} dollars is then bought by {name}.",
            ),
            (
                "How many dollars remain?",
                "How many dollars are left?",
                "How many dollars does {name} have left?",
                "Work out how many dollars remain.",
                "Find the number of dollars that {name} still has.",
            ),
        ),
    ),
    "sharing": (
        rf"(?P<first>\w+) brings (?P<most>\d+) {THING} and (?P<second>\w+) brings (?P<extra>\d+) "
        r"(?P=thing)\. They share all of them equally among (?P<people>\d+) people\. "
        r"How many (?P=thing) does each person get\?",
        (
            (
                "{first} brings {most} {thing} and {second} brings {extra} {thing}.",
                "{first} comes with {most} {thing}, and {second} comes with {extra} {thing}.",
                "{first} contributes {most} {thing} and {second} contributes {extra} {thing}.",
                "There are {most} {thing} from {first} and {extra} {thing} from {second}.",
                "While {first} brings {most} {thing}, {second} brings {extra} {thing}.",
            ),
            (
                "They share all of them equally among {people} people.",
                "All of them are shared equally among {people} people.",
                "They divide all of them evenly between {people} people.",
                "Everything is then split into equal shares for {people} people.",
                "The whole lot is divided equally among {people} people.",
            ),
            (
                "How many {thing} does each person get?",
                "How many {thing} are there for each person?",
                "How many {thing} does every person receive?",
                "Work out how many {thing} each person gets.",
                "Find the number of {thing} that each person receives.",
            ),
        ),
    ),
    "shop": (
        rf"At (?P<place>an? \w+) (?P<morning>\d+) {THING} are sold in the morning and (?P<factor>\d+) "
        r"times as many in the afternoon\. Each costs (?P<price>\d+) dollars\. "
        r"How many dollars are earned that day\?",
        (
            (
                "At {place} {morning} {thing} are sold in the morning and {factor} times as many in the "
                "afternoon.",
                "In the morning {place} sells {morning} {thing}, in the afternoon {factor} times as many.",
                "One morning {place} sells {morning} {thing}, and that afternoon {factor} times as many.",
                "There is {place} that sells {morning} {thing} in the morning and {factor} times that number "
                "in the afternoon.",
                "During the morning {morning} {thing} are sold at {place}, and {factor} times as many during "
                "the afternoon.",
            ),
            (
                "Each costs {price} dollars.",
                "Each one costs {price} dollars.",
                "The price of each is {price} dollars.",
                "Each of them is sold for {price} dollars.",
                "Every single one costs {price} dollars.",
            ),
            (
                "How many dollars are earned that day?",
                "How many dollars come in on that day?",
                "How many dollars does that day bring in?",
                "Work out how many dollars are earned that day.",
                "Find the number of dollars earned over that day.",
            ),
        ),
    ),
    "journey": (
        rf"{NAME} travels (?P<hours>\d+) hours at (?P<speed>\d+) kilometres an hour, and then (?P<rest>\d+) "
        r"kilometres more\. How far is the whole journey\?",
        (
            (
                "{name} travels {hours} hours at {speed} kilometres an hour,",
                "{name} travels for {hours} hours at a speed of {speed} kilometres an hour,",
                "For {hours} hours {name} travels at {speed} kilometres per hour,",
                "{name} is on the way for {hours} hours at {speed} kilometres an hour,",
                "At {speed} kilometres an hour {name} travels for {hours} hours,",
            ),
            (
                "and then {rest} kilometres more.",
                "and after that another {rest} kilometres.",
                "and then covers {rest} more kilometres.",
                "followed by a further {rest} kilometres.",
                "and then goes on for {rest} kilometres.",
            ),
            (
                "How far is the whole journey?",
                "How long is the whole journey in kilometres?",
                "How many kilometres is the journey in all?",
                "Work out the length of the whole journey.",
                "Find the total distance of the journey.",
            ),
        ),
    ),
    "ages": (
        r"(?P<first>\w+) is (?P<age>\d+) years old\. (?P<second>\w+) is (?P<older>\d+) years older than "
        r"(?P=first), and (?P<third>\w+) is (?P<factor>\d+) times as old as (?P=second)\. "
        r"How old are the three together\?",
        (
            (
                "{first} is {age} years old.",
                "{first} is aged {age}.",
                "The age of {first} is {age} years.",
                "{first} has reached the age of {age}.",
                "{first}'s age is {age} years.",
            ),
            (
                "{second} is {older} years older than {first}, and {third} is {factor} times as old as "
                "{second}.",
                "{second} is older than {first} by {older} years, and {third} is {factor} times as old as "
                "{second}.",
                "{second} is {older} years older than {first}, while {third}'s age is {factor} times "
                "{second}'s.",
                "{first} is {older} years younger than {second}, and {third}'s age is {factor} times "
                "{second}'s age.",
                "{second} was born {older} years before {first}, and {third} is {factor} times as old as "
                "{second}.",
            ),
            (
                "How old are the three together?",
                "How old are all three of them together?",
                "What is the sum of the three ages?",
                "Work out the total of their three ages.",
                "Find the combined age of the three.",
            ),
        ),
    ),
}
