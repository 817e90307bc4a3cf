"""What chat models put around a prompt: taken off, or rejected; a prompt's own marks stay."""

import itertools

import pytest

from klball.data.paraphrase import quality
from klball.data.paraphrase.batch_files import Asking, reply_to, request
from klball.data.paraphrase.quality import Reply
from klball.data.paraphrase.samples import Sample
from klball.data.paraphrase.unwrapping import unwrap

ORIGINAL = "Which bird hunts at night near old barns?"
ANEW = "At night, which bird goes hunting around old barns?"

AROUND = [
    "```\n{}\n```",
    "```text\n{}\n```",
    "```markdown\n{}\n```\n",
    "````\n{}\n````",
    "~~~\n{}\n~~~",
    "```{}```",
    "`{}`",
    '{{"prompt": "{}"}}',
    '{{"rewritten_prompt": "{}"}}',
    '{{"rewrittenPrompt": "{}", "style": "formal"}}',
    '{{"original": "Which bird?", "rewritten": "{}"}}',
    '{{"result": {{"text": "{}"}}}}',
    '[{{"prompt": "{}"}}]',
    '["{}"]',
    '```json\n{{"prompt": "{}"}}\n```',
    '"{}"',
    "“{}”",
    "'{}'",
    "«{}»",
    "**{}**",
    "*{}*",
    "_{}_",
    "> {}",
    "# {}",
    "1. {}",
    "- {}",
    "Sure! Here is the rewritten prompt: {}",
    "Sure! Here is the rewritten prompt:\n\n{}",
    "Sure, here's a rephrased version of the prompt:\n{}",
    "Sure!\n\n{}",
    "Sure! {}",
    "Sure, I'd be happy to help!\n\n{}",
    "Certainly! Here’s one way to put it:\n\n{}",
    "Of course. Here is your rewritten question:\n\n{}",
    "Okay, here you go:\n{}",
    "Here's a reworded version: {}",
    "Here is the prompt:\n{}",
    "Below is the paraphrased prompt:\n\n{}",
    "I've rewritten the prompt as a question:\n\n{}",
    "Rewritten prompt: {}",
    "Rewritten Prompt:\n{}",
    "**Rewritten prompt:** {}",
    "**Rewritten prompt**: {}",
    "**Rephrased Prompt (formal):**\n\n{}",
    "### Rewritten prompt\n\n{}",
    "## **Rewritten Prompt:**\n{}",
    "**Rewritten prompt**\n\n{}",
    "Prompt: {}",
    "Prompt:\n{}",
    "Paraphrase: {}",
    "The rewritten prompt is: {}",
    "New version: {}",
    "<think>Night, barns … an owl?</think>{}",
    "<think>\nmany\nlines\n</think>\n\n{}",
    "it should say “bird”.\n</think>\n{}",
    "<thinking>x</thinking><thinking>y</thinking>\n{}",
    "<prompt>{}</prompt>",
    "<rewritten_prompt>\n{}\n</rewritten_prompt>",
    "---\n{}\n---",
    "{}\n\nLet me know if you would like another version!",
    "{} Let me know if you'd like it more formal.",
    "{}\nI hope this helps!",
    "{}\n\nFeel free to ask for changes.",
    "{}\n\nWould you like me to try another style?",
    "\ufeff{}\r\n",
]


def escaped(around, text):
    return around.format(text)


@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_a_prompt_is_taken_off(around):
    assert unwrap(escaped(around, ANEW), ORIGINAL) == (ANEW, True)


@pytest.mark.parametrize(
    ("outer", "inner"),
    itertools.product(
        ["Sure! Here is the rewritten prompt:\n\n{}", "<think>hm</think>\n{}", "{}\n\nI hope this helps!"],
        [AROUND[1], AROUND[7], AROUND[14], '"{}"', "**Rewritten prompt:** {}", "> {}"],
    ),
)
def test_one_thing_around_another(outer, inner):
    assert unwrap(escaped(outer, escaped(inner, ANEW)), ORIGINAL) == (ANEW, True)


@pytest.mark.parametrize(
    "reply",
    [
        f"1. {ANEW}\n2. Which is the bird of the night?",
        f"- {ANEW}\n- Another one?",
        f"Option 1: {ANEW}\n\nOption 2: Which bird?",
        f"**Option A:** {ANEW}",
        f'{{"prompt": "{ANEW}", "answer": "An owl."}}',
        f'["{ANEW}", "Which bird is it?"]',
        f'{{"prompt": "{ANEW}"',
        f"The text is\n```\n{ANEW}\n```",
        f"```\n{ANEW}\n```\nand\n```\nWhich bird?\n```",
        f"<think>still thinking about {ANEW}",
        f"Original prompt: {ORIGINAL}\nRewritten prompt: {ANEW}",
        f"{ANEW}\n\nNote: I kept the meaning.",
        f"{ANEW}\n\n(Note: the meaning is unchanged.)",
        f"{ANEW}\n\nI have changed the order of the parts.",
        f"{ANEW}\n\nThis version is more formal.",
        f"{ANEW}\n\n**Explanation:** moved the time to the front.",
        f"# A bird\n\n{ANEW}",
        f"<|im_start|>assistant\n{ANEW}<|im_end|>",
        f"Assistant: {ANEW}",
        f"This is a rephrased question. {ANEW}",
        f"Okay, so {ANEW}",
    ],
)
def test_what_could_be_meant_in_several_ways_is_rejected(reply):
    assert not unwrap(reply, ORIGINAL)[1]


OWN = [  # original, a rewording that shares its marks and must stay as it is
    ("Explain:\n```py\nx = 1\n```", "What does this do?\n```py\nx = 1\n```"),
    ("```py\nx = 1\n```", "```py\ny = 1\n```"),
    ("Fix ```a``` please", "Please fix ```a```"),
    ('{"city": "Oslo", "day": 3}', '{"city": "Oslo", "day": 3, "hour": 1}'),
    ('{"prompt": "Name a bird."}', '{"prompt": "Give the name of a bird."}'),
    ('Turn {"a": 1} into YAML', 'As YAML, please: {"a": 1}'),
    ('["a", "b"]', '["b", "a"]'),
    ('"To be or not to be"', '"Not to be or to be"'),
    ("Sort:\n- pear\n- fig", "Put in order:\n- pear\n- fig"),
    ("1. Boil water\n2. Add tea\nWhat next?", "1. Boil the water\n2. Add the tea\nAnd then?"),
    ("# Task\nName a bird.", "# Task\nGive the name of a bird."),
    ("> He left.\nWho left?", "> He left.\nWho was it that left?"),
    ("Rewrite this: I is here.", "Please write this anew, rephrased: I is here."),
    ("Sure! But why?", "Sure! Yet why?"),
    ("Great Britain is an island.\nHow large is it?", "Great Britain is an island.\nWhat is its size?"),
    ("Okay, who wins?", "Okay, who is it that wins?"),
    ("Tell me a joke.", "Let me know a joke."),
    ("Name 3 birds.", "I have a task: name 3 birds."),
    ("Who are you? Let me know if you need more.", "Say who you are. Let me know if you need more."),
    ("Compare two versions of a poem: a, b.", "Here are two versions of a poem: a, b. Compare them."),
    ("Explain <b>this</b>.", "<b>this</b> is to be explained."),
    ("What does <think> do?", "What is <think> for?"),
    ("Input: 3\nOutput:", "Input: 3\nOutput:"),
    ("Prompt: a cat. Answer:", "Prompt: the cat. Answer:"),
    ("Use metres. Note: no feet.", "Metres, please.\n\nNote: no feet."),
    ("I replaced the disk.\nWhat now?", "The disk is new.\nWhat should I do now?"),
    ("`os.path` does what?", "What does `os.path` do?"),
    ("`a` or `b`?", "`b` or `a`"),
    ("It's 5 o'clock.", "'Tis 5 o'clock"),
]


@pytest.mark.parametrize(("original", "reply"), OWN)
def test_what_the_prompt_has_itself_stays(original, reply):
    assert unwrap(reply, original) == (reply, True)


@pytest.mark.parametrize("original", [original for original, _ in OWN])
def test_an_outer_wrapper_of_a_marked_prompt_is_taken_off(original):
    reply = f"Sure! Here is the rewritten prompt:\n\n{original}"
    if not original.startswith("Sure!"):
        assert unwrap(reply, original) == (original, True)
    fence = "`````"  # longer than any inside, as Markdown asks for
    assert unwrap(f"{fence}text\n{original}\n{fence}", original) == (original, True)


def test_a_wrapped_reply_has_a_reason_of_its_own():
    sample = Sample("0", f"  {ORIGINAL}\n", "An owl.")
    asking = Asking("m", None, 50)
    custom_id = request(sample, 1, asking)["custom_id"]

    def judged(text, problem=""):
        reply = reply_to(sample, 1, asking, {custom_id: Reply(text, problem)})
        return quality.QualityControl([sample]).judge([reply])[0]

    assert judged(f"```\n{ANEW}\n```").candidate == f"  {ANEW}\n"
    assert judged(f"1. {ANEW}\n2. {ORIGINAL}").reason == quality.WRAPPED
    assert judged("```\nAt ni", quality.CUT_OFF).reason == quality.CUT_OFF
    assert quality.WRAPPED in quality.REASONS


def test_hostile_replies_end():
    for text in (
        "[" * 100_000,
        "<think>" * 20_000,
        "*" * 50_000,
        "Sure! " * 5_000,
        "(" * 50_000,
        "> " * 50_000,
    ):
        unwrap(text, ORIGINAL)
