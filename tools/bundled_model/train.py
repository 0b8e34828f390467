"""Makes the bundled model from nothing: questions, tokenizer, training, files.

    python -m tools.bundled_model.train

Writes a Hugging Face checkpoint (bfloat16) every `--save-every` steps and at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from . import attention
from .batches import IGNORED, BatchStream
from .showcase import write_showcase
from .tokenizer import BEGIN, END, PAD, build_tokenizer, save_tokenizer

FOLDER = Path(__file__).parents[2] / "coordinator" / "ryzanstein_coordinator" / "bundled_model"
MAX_LENGTH = 4096
_WARM_UP_STEPS = 50
_LOG_EVERY_STEPS = 50
# Short rows first: the model learns sooner to look for things in the question.
_SHORT_ROWS_FRACTION = 0.25


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    """A shape that 1, 2 and 4 ranks can split: 8 query heads and 4 key-value heads of 32.

    The heads are wider together (256) than the hidden state (192), as in some large models, so that
    nothing may take one for the other.
    """
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        dtype="bfloat16",
    )


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a constant rate, then linear decay to zero over the last 60 %."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS, (1 - step / steps) / 0.6)


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes `config.json`, `generation_config.json` and `model.safetensors` in bfloat16."""
    rounded = LlamaForCausalLM(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    rounded.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # save_pretrained leaves it to its owner alone
    # Loaders written for older releases of transformers look for the rotary base here.
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config, indent=2) + "\n")


def train(
    folder: Path, *, seed: int, steps: int, tokens_per_step: int, save_every: int, compiled: bool
) -> None:
    """Trains `steps` steps and leaves the finished model in `folder`."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(seed)
    save_tokenizer(tokenizer, folder, MAX_LENGTH)
    write_showcase(folder)
    model = LlamaForCausalLM(model_config(tokenizer)).float()
    model.set_attn_implementation(attention.NAME)
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    # Muon for the matrices inside the layers, AdamW for the embedding and the norms, as its authors
    # advise: https://kellerjordan.github.io/posts/muon/
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
        for optimizer in optimizers
    ]
    batches = BatchStream(tokenizer, seed)
    recent: list[float] = []
    started_s = time.monotonic()
    for step in range(steps):
        batch = batches.batch(tokens_per_step, short=step < _SHORT_ROWS_FRACTION * steps)
        with torch.autocast("cpu", torch.bfloat16):  # logits are [B, S, vocabulary]
            logits = model(input_ids=batch.inputs, attention_mask=batch.mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED
        )
        loss.backward()
        recent.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % _LOG_EVERY_STEPS == 0 or step == steps - 1:
            elapsed_s, cpu_s = time.monotonic() - started_s, time.process_time()
            mean = sum(recent) / len(recent)
            print(f"step {step + 1} loss {mean:.4f} elapsed_s {elapsed_s:.0f} cpu_s {cpu_s:.0f}", flush=True)
            recent.clear()
        if (step + 1) % save_every == 0 or step == steps - 1:
            save_model(model, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--tokens-per-step", type=int, default=2048)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the layers (needs g++)",
    )
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    train(
        chosen.folder,
        seed=chosen.seed,
        steps=chosen.steps,
        tokens_per_step=chosen.tokens_per_step,
        save_every=chosen.save_every,
        compiled=chosen.compile,
    )


if __name__ == "__main__":
    main()
