"""Robust SFT of the embedded model: a few steps, and which samples count the most."""

import klball

model, tokenizer = klball.load_model("klball/tiny")
rows = klball.load_rows("stdlib-docs", "train[:48]")

config = klball.RobustSFTConfig(
    output_dir="outputs/example-train",
    epsilon=0.05,  # the radius; 0 is plain SFT
    bf16=False,  # TRL trains in bf16 by default, which a CPU may not have
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    max_steps=4,
    logging_steps=2,
    save_strategy="no",
    report_to="none",
)
trainer = klball.RobustSFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
trainer.train()

log = [entry for entry in trainer.state.log_history if "kl" in entry]
for entry in log:
    print({name: entry[name] for name in ("loss", "plain_loss", "lambda", "kl", "ess_ratio", "max_weight")})

# a row a training sample; n_q is its weight, 1 being an even share. The files hold the first 20, with texts
weights = trainer.sample_weights()
for sample in weights.sort("n_q", reverse=True).select(range(3)):
    print(sample)
