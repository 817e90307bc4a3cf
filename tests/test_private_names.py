"""The private names of other packages that klball overrides, calls or reads: all stand here, and all exist.

A new TRL or Transformers may move one without a word; `docs/architecture.md` says what to do then.
"""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import klball

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
SOURCES = sorted(Path(klball.__file__).parent.rglob("*.py"))
LISTED = {name for group in (OVERRIDDEN, CALLED, READ) for names in group.values() for name in names}


def found(path: str):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name) if module else import_module(path)


@pytest.mark.parametrize(
    ("owner", "name"), [(o, n) for group in (OVERRIDDEN, CALLED) for o, names in group.items() for n in names]
)
def test_a_method_is_there(owner, name):
    assert hasattr(found(owner), name)


@pytest.mark.parametrize(("owner", "name"), [(o, n) for o, names in READ.items() for n in names])
def test_an_attribute_is_set_by_its_owner(owner, name):
    mine = [base for base in inspect.getmro(found(owner)) if base is not object]
    assert any(re.search(rf"\b{name}\b", inspect.getsource(base)) for base in mine)


def private_uses(path: Path):
    """(is it of super(), name) of `super()._x` and of `._x` of what is neither `self` nor `cls`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not re.fullmatch(r"_[a-z]\w*", node.attr):
            continue
        owner = node.value
        of_super = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
        if of_super or not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
            yield of_super, node.attr


def test_every_use_of_a_private_name_is_listed():
    used = [use for path in SOURCES for use in private_uses(path)]
    overridden = {name for names in OVERRIDDEN.values() for name in names if name.startswith("_")}
    assert {name for of_super, name in used if of_super} == overridden
    ours = {
        name
        for path in SOURCES
        for name in re.findall(r"(?:def |self\.)(_[a-z]\w*)", path.read_text(encoding="utf-8"))
    }
    documented = {"_replace", "_fields", "_asdict"}  # of named tuples
    assert {name for of_super, name in used if not of_super} - ours - LISTED - documented == set()
