"""Stage `base` of the pocket study: build a tokenizer and pre-train a tiny Qwen3 model on the synthetic world.

Pre-training stands in for web text. Documents are (prompt, answer) pairs rendered with
the chat template; the loss is on every token. They are packed into rows of 128 tokens with restarting position
ids, which transformers reads as separate documents. Writes a prepared base: safetensors weights, tokenizer with
eos `<|im_end|>` and pad `<|endoftext|>`, Qwen3 chat template, generation_config with both as stop ids.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from data.corpus.demonstrations import check_scripted_demonstrations
from data.language_model import on_cpu, seed_everything
from data.pocket_world import pretraining_documents
from data.prompts.pocket_tokenizer import TOKENIZER_DOCUMENTS, build_tokenizer
from data.prompts.prompt import EOS_TOKEN, render_prompt
from recipes.files import hash_files
from recipes.manifest import finish_stage
from recipes.schema import PocketModelSpec, Recipe
from recipes.training_schema import PromptSpec
from train.accounting.cost import pocket_config
from train.models.directory import model_files
from train.runtime.checkpoints import CheckpointMarker, keep_complete_checkpoints, remove_checkpoints
from train.runtime.recorder import RunRecorder

ROW_TOKENS = 128
_IGNORE = -100


def build_model(spec: PocketModelSpec, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The untrained model; its weights follow from the global torch seed."""
    config = Qwen3Config(
        **pocket_config(spec),
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def packed_rows(
    documents: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, prompt: PromptSpec
) -> list[dict[str, list[int]]]:
    """Rows of `ROW_TOKENS` tokens; each holds as many whole documents as fit, in order."""
    prompts = tokenizer([render_prompt(tokenizer, p, prompt) for p, _ in documents])["input_ids"]
    answers = tokenizer([completion + EOS_TOKEN for _, completion in documents])["input_ids"]
    rows: list[dict[str, list[int]]] = []
    for prompt_ids, answer_ids in zip(prompts, answers, strict=True):
        ids = prompt_ids + answer_ids
        if len(ids) > ROW_TOKENS:
            raise ValueError(f"a document of {len(ids)} tokens does not fit a row of {ROW_TOKENS}")
        if not rows or len(rows[-1]["input_ids"]) + len(ids) > ROW_TOKENS:
            rows.append({"input_ids": [], "position_ids": []})
        rows[-1]["input_ids"] += ids
        rows[-1]["position_ids"] += range(len(ids))
    for row in rows:
        padding = ROW_TOKENS - len(row["input_ids"])
        row["labels"] = row["input_ids"] + [_IGNORE] * padding
        row["input_ids"] += [tokenizer.pad_token_id] * padding
        row["position_ids"] += [0] * padding  # the padding is a document of its own: position 0 again and again
    return rows


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Build the tokenizer, pre-train, write the prepared base into `stage_dir`."""
    assert recipe.model is not None and recipe.model.pocket is not None
    spec = recipe.model.pocket

    # Text and tokenizer follow from the seed, so a resumed run rebuilds them.
    documents = list(pretraining_documents(spec.seed, spec.documents))
    tokenizer = build_tokenizer(documents[:TOKENIZER_DOCUMENTS], spec.vocab_size)
    check_scripted_demonstrations(recipe, tokenizer)  # now, not after the minutes of pre-training
    rows = packed_rows(documents, tokenizer, PromptSpec())

    # Model
    seed_everything(spec.seed)
    model = build_model(spec, tokenizer)

    # Training: one pass over the rows in order.
    steps = len(rows) // spec.batch_size
    checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
    recorder = RunRecorder(stage_dir, steps, resumed_step=checkpoint.step if checkpoint else 0)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(stage_dir),
            max_steps=steps,
            per_device_train_batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 20),
            weight_decay=0.01,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            seed=spec.seed,
            save_steps=spec.save_every_steps,
            save_total_limit=2,
            logging_steps=10,
            disable_tqdm=True,
            report_to=[],
            use_cpu=on_cpu(),
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        callbacks=[recorder, CheckpointMarker()],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)

    # Prepared base
    model.save_pretrained(stage_dir)
    tokenizer.save_pretrained(stage_dir)
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "documents": len(documents),
        "steps": steps,
    }
    finish_stage(stage_dir, hash_files(stage_dir, model_files(stage_dir)), facts)
    remove_checkpoints(stage_dir)
