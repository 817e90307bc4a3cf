#!/usr/bin/env bash
# A radius for role-play and one for GSM8K: `bash ../tune.sh FOLDER_OF_FILES` in the folder of `data.py`'s rows.
# Interrupted, it goes on where it was.
set -euo pipefail
tune() { # FOLDER FILE [options]
  klball tune --model_name_or_path smollm2 --dtype bfloat16 --use_peft true --lora_r 16 --lora_alpha 32 \
    --lora_target_modules all-linear --gradient_checkpointing false --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 8 --num_train_epochs 1 --warmup_steps 0.1 --learning_rate 1e-3 --max_length 512 \
    --dataset_train_split 'train[:320]' --eval_fraction 0.3 --output_dir "outputs/$1" --dataset_name "$2" "${@:3}"
}
tune tune-roleplay "$1/gpteacher-roleplay.json"
tune tune-gsm8k "$1/gsm8k-train-3000.jsonl" --epsilons 0 0.05 0.2
