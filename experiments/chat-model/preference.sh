#!/usr/bin/env bash
# DPO and reward models on hh-harmless, reward models on LLMBar, GDPO on the personas' beliefs, in the folder of `data.py`'s rows: `bash ../preference.sh`.
# On a CPU: `OMP_NUM_THREADS=1 LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=thp:always,dirty_decay_ms:20000 bash ../preference.sh`.
# Interrupted, it goes on where it was.
set -euo pipefail
SEED=${SEED:-42}
SHARED="--model_name_or_path smollm2 --dtype bfloat16 --use_peft true --lora_r 16 --lora_alpha 32
  --lora_target_modules all-linear --gradient_checkpointing false --max_length 512 --per_device_train_batch_size 1
  --warmup_steps 0.1 --lr_scheduler_type cosine --save_strategy epoch --logging_steps 10 --report_to none --seed $SEED"

arm() { # NAME FAMILY ROWS [options]
  local out=outputs/preference/$1-$SEED family=$2 rows=$3
  shift 3
  [ -e "$out/done" ] && return
  klball train --family "$family" --dataset_name "$rows.jsonl" --output_dir "$out" $SHARED "$@"
  case $family in
    dpo) scored "$out" dpo hh-test-short --reference_model smollm2 ;;
    reward) scored "$out" reward $TEST ;;
  esac
  touch "$out/done"
}

scored() { # FOLDER FAMILY ROWS [options]
  local folder=$1 family=$2 rows=$3
  shift 3
  klball score --family "$family" --model_name_or_path "$folder" --dataset_name "$rows.jsonl" --dtype bfloat16 \
    --output_dir "$folder-scored" "$@"
}

for rows in hh-train-short hh-train-flipped-short; do
  dpo() { arm "dpo-$rows-$1" dpo "$rows" --num_train_epochs 1 --gradient_accumulation_steps 2 --learning_rate 1e-4 \
    --precompute_ref_log_probs true "${@:2}"; }
  dpo plain --epsilon 0
  dpo pessimistic --epsilon 0.02
  dpo optimistic --epsilon 0.02 --direction optimistic
  dpo trim --epsilon 0.02 --comparator trim --comparator_strength 0.2
done

hh_reward() {
  TEST=hh-test-short arm "reward-$rows-$1" reward "$rows" --gradient_accumulation_steps 4 --learning_rate 2e-4 --lora_dropout 0 \
    --num_train_epochs 1 "${@:2}"
}
for rows in hh-train-short hh-train-flipped-short; do
  hh_reward plain --epsilon 0
  hh_reward pessimistic --epsilon 0.02
  hh_reward optimistic --epsilon 0.02 --direction optimistic
  hh_reward trim --epsilon 0.02 --comparator trim --comparator_strength 0.2
done

llmbar() {
  TEST="llmbar-test-short --group_column group" arm "llmbar-$1" reward llmbar-train-short --gradient_accumulation_steps 4 --learning_rate 2e-4 --num_train_epochs 1 "${@:2}"
}
llmbar plain --epsilon 0
llmbar pairs --epsilon 0.05
llmbar groups --epsilon 0.05 --over group --group_column group

gdpo() {
  arm "gdpo-$1" gdpo beliefs-train-short --gradient_accumulation_steps 4 --learning_rate 2e-4 --num_train_epochs 1 \
    --eval_dataset beliefs-test.jsonl --eval_strategy epoch "${@:2}"
}
gdpo plain --epsilon 0
gdpo beliefs --epsilon 0.05
gdpo groups --epsilon 0.05 --over group --group_column group
