"""Two models over rounds of reworded questions: which has the better worst case, and may we say so?"""

import klball

ROUNDS = (
    "{}",
    "Please answer briefly: {}",
    "A colleague asks: {}",
    "{} Think before you answer.",
    "I have a question. {}",
)

before, tokenizer = klball.load_model("klball/tiny")
rows = klball.load_rows("word-problems", "test[:120]")
tables = {}


def score_rounds(name, model):
    """A score table for every round, of the same rows with reworded questions."""
    for number, wording in enumerate(ROUNDS, 1):
        reworded = rows.map(lambda row, wording=wording: {"question": wording.format(row["question"])})
        tables[name, str(number)] = klball.score(model, tokenizer, reworded)


score_rounds("before", before)
config = klball.RobustSFTConfig(
    output_dir="outputs/example-compare",
    epsilon=0.05,
    bf16=False,  # TRL trains in bf16 by default, which a CPU may not have
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    max_steps=6,
    save_strategy="no",
    report_to="none",
)
train = klball.load_rows("word-problems", "train[:64]")
trainer = klball.RobustSFTTrainer(before, config, train_dataset=train, processing_class=tokenizer)
trainer.train()  # trains the model in place
score_rounds("after", trainer.model)

comparison = klball.compare_scores(klball.round_scores(tables), epsilon=0.3)
print(comparison.caution())
for analysis, sentence in comparison.said():
    print(f"{analysis.name}: {sentence}")
