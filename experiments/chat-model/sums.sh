#!/usr/bin/env bash
# Sums of two numbers by SFT, GRPO and robust GRPO from one short SFT, and what each forgets of role-play and of harmless answers, in
# the folder of `data.py`'s rows: `bash ../sums.sh`. SEED: of the three; on a CPU set the variables of preference.sh too.
# Interrupted, it goes on where it was.
set -euo pipefail
SEED=${SEED:-42}
OUT=outputs/sums
SHARED="--dtype bfloat16 --use_peft true --lora_r 16 --lora_alpha 32 --lora_dropout 0 --lora_target_modules all-linear
  --gradient_checkpointing false --warmup_steps 0.1 --lr_scheduler_type cosine --save_strategy epoch --logging_steps 5 --report_to none"

head -96 sums-start.jsonl >sums-96.jsonl
head -100 sums-train.jsonl >sums-100.jsonl
head -60 sums-test.jsonl >sums-60.jsonl
head -40 role-play.jsonl >role-play-40.jsonl

[ -e $OUT/start/config.json ] || {
  klball train --model_name_or_path smollm2 --dataset_name sums-96.jsonl --output_dir $OUT/adapter $SHARED --epsilon 0 \
    --per_device_train_batch_size 8 --num_train_epochs 1 --learning_rate 2e-4
  python -c "
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
AutoPeftModelForCausalLM.from_pretrained('$OUT/adapter', dtype='auto').merge_and_unload().save_pretrained('$OUT/start')
AutoTokenizer.from_pretrained('$OUT/adapter').save_pretrained('$OUT/start')"
}

arm() { # NAME [options]
  klball train --model_name_or_path $OUT/start --dataset_name sums-100.jsonl --output_dir $OUT/$1-$SEED $SHARED --seed $SEED \
    --num_train_epochs 2 --learning_rate 1e-4 "${@:2}"
}
rl() { arm "$1" --family grpo --reward last-number --per_device_train_batch_size 8 --gradient_accumulation_steps 4 \
  --num_generations 8 --max_completion_length 24 --beta 0 --radius "$2"; }

arm sft --epsilon 0 --per_device_train_batch_size 8
rl grpo 0
rl robust 0.1

MODELS="base=smollm2 start=$OUT/start sft=$OUT/sft-$SEED grpo=$OUT/grpo-$SEED robust=$OUT/robust-$SEED"
klball evaluate --generate --reward last-number --samples 4 --max_new_tokens 24 --models $MODELS --dtype bfloat16 \
  --datasets sums-60.jsonl --output_dir $OUT/answers-$SEED
klball evaluate --models ${MODELS#* } --dtype bfloat16 --datasets role-play-40.jsonl hh-answers.jsonl --output_dir $OUT/forgotten-$SEED
