#!/usr/bin/env bash
# The base, SFT, SFT at a quarter of the rate and robust SFT (GSM8K), compared over rounds of GSM8K questions, in the folder of
# `data.py`'s rows: `bash ../comparison.sh`. Four rounds worded by the chat model itself, of which
# today's checks accept none (ten are in the lab notes), as many framed by templates.
# Interrupted, it goes on where it was. ROUNDS, ITEMS: sizes; on a CPU set the variables of preference.sh too.
set -euo pipefail
ROUNDS=${ROUNDS:-4} ITEMS=${ITEMS:-160}
OUT=outputs/comparison

arm() { # NAME [options]
  [ -e "$OUT/$1/adapter_model.safetensors" ] || klball train --model_name_or_path smollm2 --dtype bfloat16 \
    --dataset_name gsm8k-train-480.jsonl --output_dir "$OUT/$1" --use_peft true --lora_r 16 --lora_alpha 32 --lora_dropout 0 \
    --lora_target_modules all-linear --gradient_checkpointing false --max_length 512 --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 8 --num_train_epochs 1 --warmup_steps 0.1 --lr_scheduler_type cosine --save_strategy epoch \
    --report_to none "${@:2}"
}

head -480 gsm8k-train.jsonl >gsm8k-train-480.jsonl
head -"$ITEMS" gsm8k-test.jsonl >gsm8k-items.jsonl
arm sft --epsilon 0 --learning_rate 1e-3
arm sft-lower --epsilon 0 --learning_rate 2.5e-4
arm robust --epsilon 0.05 --learning_rate 1e-3

klball paraphrase --dataset_name gsm8k-items.jsonl --maker model --model_name_or_path smollm2 --dtype bfloat16 \
  --rounds "$ROUNDS" --output_dir "$OUT/by-model"
klball paraphrase --dataset_name gsm8k-items.jsonl --rounds "$ROUNDS" --output_dir "$OUT/by-templates"
for maker in by-model by-templates; do
  klball compare --models base=smollm2 sft="$OUT/sft" lower="$OUT/sft-lower" robust="$OUT/robust" --dtype bfloat16 \
    --rounds_path "$OUT/$maker/rounds.parquet" --output_dir "$OUT/compared-$maker"
done
