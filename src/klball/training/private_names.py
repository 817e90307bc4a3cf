"""The private names of other packages that klball overrides, calls or reads, and where.

A new TRL or Transformers may move one without a word: a test then fails that goes through this list, and
`docs/architecture.md` says what to do.
"""

OVERRIDDEN = {  # class → its methods that a mixin or a trainer overrides, calling super()
    "trl.SFTTrainer": ("_prepare_dataset", "_set_signature_columns_if_needed"),
    "trl.DPOTrainer": ("_prepare_dataset", "_set_signature_columns_if_needed"),
    "trl.RewardTrainer": ("_prepare_dataset", "_set_signature_columns_if_needed"),
    "trl.GRPOTrainer": (
        *("_set_signature_columns_if_needed", "_get_train_sampler"),
        *("_calculate_rewards", "_generate_and_score_completions", "_compute_loss", "_save_checkpoint"),
    ),
    "transformers.Trainer": (
        *("_set_signature_columns_if_needed", "_save_checkpoint", "_save"),
        *("_run_epoch", "_init_training_state", "get_batch_samples", "compute_loss", "training_step"),
        *("_load_from_checkpoint", "_load_best_model", "_get_train_sampler"),
    ),
}
CALLED = {  # class → methods
    "transformers.Trainer": ("_get_output_dir",),
    "trl.GRPOTrainer": ("_tokenize_prompts",),
    "torch": ("_inductor",),
    "torch._inductor": ("list_mode_options",),
}
READ = {  # class → attributes that its own code sets
    "trl.SFTTrainer": ("_metrics", "_tag_names", "_skip_prepare_dataset"),
    "trl.DPOTrainer": ("_metrics", "_tag_names"),
    "trl.RewardTrainer": ("_metrics", "_tag_names"),
    "trl.GRPOTrainer": (*("_metrics", "_step", "_buffered_inputs", "_last_world_entropy", "_tag_names"),),
    "transformers.Trainer": ("_signature_columns", "loss_is_scaled_for_ga", "model_wrapped"),
    "transformers.PretrainedConfig": ("_attn_implementation", "_name_or_path"),
    "transformers.integrations.MLflowCallback": ("_auto_end_run",),
    "argparse.ArgumentParser": ("_group_actions",),
}
