"""Under which heading of a command's help an option stands; what is not here is the command's own matter."""

HEADINGS = {
    "model": """
        model_name_or_path model_revision models reference_model chat_template_path dtype max_length
    """,
    "data": """
        dataset_name dataset_config dataset_split dataset_train_split dataset_test_split datasets id_column
        max_rows test_name eval_dataset eval_fraction test_fraction train_rows test_rows ood_name ood_names
        ood_config ood_split ood_rows hard_name hard_config pairs_name
    """,
    "scores from elsewhere (CSV, JSON lines, Parquet, lm-eval, Inspect)": """
        score lower_is_better id group round model_column model_columns
    """,
    "adversary": """
        epsilon epsilons radius gamma ambiguity alpha direction max_weight trim caps epsilon_warmup
        group_column over reweight rescore_steps on_infeasible certainty_gradient shrinkage comparator
        comparator_strength
    """,
    "certified worst case": "confidence bounds",
    "objective": """
        objective psft_clip psft_refresh psft_warmup_steps entropy_coef normalization assistant_only_loss
        beta belief_end loss_type scale_rewards
    """,
    "answers and rewards": """
        generate samples pass_at answer_seed max_new_tokens temperature own_name own_prompts own_samples
        own_tokens num_generations max_completion_length reward reward_model cut_penalty length_penalty
    """,
    "critic": "critic gae_gamma gae_lambda value_clip critic_learning_rate",
    "training": """
        learning_rate rl_learning_rate per_device_train_batch_size gradient_accumulation_steps
        num_train_epochs warmup_ratio weight_decay adam_beta2 lora_r lora_alpha start_steps
        start_learning_rate start_names
    """,
    "output": "output_dir num_jobs job_index",
}
HEADING_OF = {name: title for title, names in HEADINGS.items() for name in names.split()}
