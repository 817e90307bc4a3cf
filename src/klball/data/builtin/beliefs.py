"""Opinion questions asked of groups of people, with the share p* of each group that holds each belief.

What a group believes depends on the question's theme, so that held-out questions can be answered; every
question occurs once for each tenth of a group that holds a belief. The answers are a belief and a reason:
`chosen` fits the belief, `rejected` is the reason for another one. The islanders are few, and believe what
the others do not.
"""

from klball.data.builtin import Row, content_hash

MINORITY = "islanders"
QUESTIONS_OF = {"townspeople": 1, "villagers": 2, MINORITY: 5}  # a group is asked every k-th question
BELIEFS = {  # theme → belief → reasons
    "money": {
        "Yes": ("it pays for itself in a few years", "what it earns stays here"),
        "No": ("it costs more than it brings", "the money is needed elsewhere"),
    },
    "nature": {
        "Protect": ("what is lost will not come back", "the animals have nowhere else to go"),
        "Use": ("people have to live from something", "the land has always been worked"),
        "Share": ("there is room for both", "half of it can be left alone"),
    },
    "custom": {
        "Keep": ("our parents did it this way", "it holds us together"),
        "Change": ("times are different now", "the young do not want it"),
        "Drop": ("nobody needs it any more", "it only makes trouble"),
        "Vote": ("everybody should be asked", "the council cannot decide it alone"),
    },
}
TENTHS = {  # theme → group → tenths of it that hold each belief, in the order above
    "money": {"townspeople": (8, 2), "villagers": (6, 4), MINORITY: (1, 9)},
    "nature": {"townspeople": (7, 1, 2), "villagers": (2, 6, 2), MINORITY: (1, 8, 1)},
    "custom": {"townspeople": (2, 5, 1, 2), "villagers": (6, 2, 1, 1), MINORITY: (1, 1, 7, 1)},
}
TOPICS = {  # theme → question with a field → what can stand in it, half of the last ones are held out
    "money": (
        "Should the council build {}?",
        "a harbour/a bridge/a theatre/a market hall/a swimming pool/a railway station/a town hall/a school/"
        "a windmill/a dam/a library/a road/a tower/a hospital/a stadium/a museum",
    ),
    "nature": (
        "What should be done with {}?",
        "the old forest/the marsh/the river bank/the dunes/the hill/the lake/the meadow/the moor/"
        "the cliffs/the reed beds/the valley/the orchard/the heath/the spring/the bay/the gorge",
    ),
    "custom": (
        "What should become of {}?",
        "the spring fair/the night watch/the Sunday market/the harvest dance/the boat race/the bell ringing/"
        "the winter fire/the long lunch/the guild supper/the horse parade/the rose ball/the singing contest/"
        "the quiet week/the lantern walk/the shooting match/the barn feast",
    ),
}
HELD_OUT = 4  # topics of a theme


def rows(split: str) -> list[Row]:
    """prompt, beliefs, p_star, belief, chosen, rejected, group and theme; a row a belief's tenth."""
    found = []
    for theme, (question, topics) in TOPICS.items():
        names = topics.split("/")
        own = names[-HELD_OUT:] if split == "test" else names[:-HELD_OUT]
        for place, topic in enumerate(own):
            for group, every in QUESTIONS_OF.items():
                if place % every == 0:
                    found += _asked(theme, group, question.format(topic))
    return sorted(found, key=lambda row: row["id"])


def _asked(theme: str, group: str, question: str) -> list[Row]:
    """Ten rows, as many of each belief as tenths of the group hold it."""
    beliefs, tenths = list(BELIEFS[theme]), TENTHS[theme][group]
    made = []
    for place, (belief, count) in enumerate(zip(beliefs, tenths, strict=True)):
        for k in range(count):
            reasons = BELIEFS[theme][belief]
            other = BELIEFS[theme][beliefs[(place + 1 + k) % len(beliefs)]]
            if other is reasons:
                other = BELIEFS[theme][beliefs[(place + 1) % len(beliefs)]]
            made.append(
                {
                    "id": content_hash(group, question, belief, str(k)),
                    "prompt": [{"role": "user", "content": f"You speak for the {group}. {question}"}],
                    "beliefs": beliefs,
                    "p_star": [tenth / 10 for tenth in tenths],
                    "belief": belief,
                    "chosen": [{"role": "assistant", "content": _reason(reasons, k)}],
                    "rejected": [{"role": "assistant", "content": _reason(other, k)}],
                    "group": group,
                    "theme": theme,
                }
            )
    return made


def _reason(reasons: tuple[str, ...], k: int) -> str:
    return _sentence(reasons[k % len(reasons)])


def _sentence(reason: str) -> str:
    return f"Because {reason}."


def belief_of(text: str, theme: str) -> str:
    """The belief that a reason is for."""
    return next(belief for belief, reasons in BELIEFS[theme].items() if text in map(_sentence, reasons))
