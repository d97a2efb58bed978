"""Teacher-generated text: seeded per batch, resumable to the same bytes, free of a checkpoint's habits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from compressor.cli.main import invoke
from compressor.core.errors import UsageError, VerificationError
from compressor.data.packing import read_windows
from compressor.data.sources import Documents
from compressor.distillation import generate_stage as generate
from compressor.distillation.generate_stage import GENERATE, SAMPLES_PER_BATCH, TEXT_FILE, Sampler
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.recipe import Generate
from compressor.runs.stage import StageOutcome, execute
from tests.corruptions.formats import change_json
from tests.tiny_models import EOS_ID, VOCAB_SIZE, make_model, make_tokenizer, save_checkpoint
from tests.unit.distillation.test_stage import as_source, make_context
from tests.unit.training.test_checkpoints import DAMAGES


def make_sampler(model: Any = None, *, prompts: Any = None, seed: int = 0, **settings: Any) -> Sampler:
    config = Generate(**{"tokens": 100, "max_new_tokens": 6, **settings})
    return Sampler(model or make_model(), make_tokenizer(), config, prompts=prompts, seed=seed)


def sample(checkpoint: Path, out_dir: Path, config: Generate) -> StageOutcome:
    return execute(GENERATE, config, as_source(checkpoint), out_dir, make_context(None))


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    forwards, backwards = make_sampler(), make_sampler()
    batches = [forwards.batch(number) for number in range(3)]
    torch.manual_seed(99)

    assert [backwards.batch(number) for number in (2, 1, 0)] == batches[::-1]
    assert batches[0] != batches[1] != batches[2]
    assert make_sampler(seed=1).batch(0) != batches[0]


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    make_sampler().batch(0)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_checkpoints_own_generation_settings_do_not_remain() -> None:
    """Many checkpoints carry a top-k, a temperature or a penalty; here, one that allows a single token."""
    model = make_model()
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=1, temperature=0.1, repetition_penalty=5.0, eos_token_id=[7, EOS_ID]
    )
    rows = make_sampler(model, max_new_tokens=20).batch(0)

    assert rows == make_sampler(_with_ends(make_model(), [7, EOS_ID]), max_new_tokens=20).batch(0)
    assert len({tuple(sampled[:1]) for _, sampled in rows}) > 1
    assert all(7 not in sampled and EOS_ID not in sampled for _, sampled in rows)


def _with_ends(model: Any, ends: list[int]) -> Any:
    model.generation_config = GenerationConfig(eos_token_id=ends)
    return model


def test_samples_follow_the_models_distribution_and_its_temperature() -> None:
    """First tokens of 30 batches against the softmax of the logits behind BOS, hot and cold."""
    model = make_model()
    logits = model(torch.tensor([[make_tokenizer().bos_token_id]])).logits[0, -1]
    for temperature in (1.0, 0.4):
        sampler = make_sampler(make_model(), max_new_tokens=1, temperature=temperature)
        first = [(sampled or [EOS_ID])[0] for number in range(30) for _, sampled in sampler.batch(number)]
        counts = torch.bincount(torch.tensor(first), minlength=VOCAB_SIZE) / len(first)
        expected = torch.softmax(logits / temperature, dim=-1)
        likely = expected.topk(20).indices
        assert (counts[likely].sum() - expected[likely].sum()).abs() < 0.08


def test_top_p_keeps_to_the_nucleus() -> None:
    model = make_model()
    logits = model(torch.tensor([[make_tokenizer().bos_token_id]])).logits[0, -1]
    shares, tokens = torch.softmax(logits, dim=-1).sort(descending=True)
    nucleus = set(tokens[: int((shares.cumsum(0) < 0.3).sum()) + 1].tolist())
    sampler = make_sampler(make_model(), max_new_tokens=1, top_p=0.3)

    assert {(sampled or [EOS_ID])[0] for _, sampled in sampler.batch(0)} <= nucleus


def test_samples_begin_with_their_prompts(tiny_text: Path, tiny_tokenizer: Any) -> None:
    prompts = read_windows(str(tiny_text), "train", tiny_tokenizer, size=20, seq_len=4)
    sampler = make_sampler(prompts=prompts, prompt_tokens=4)

    found = [prompt for number in range(2) for prompt, _ in sampler.batch(number)]
    assert found == [prompts[index % 20].tolist() for index in range(2 * SAMPLES_PER_BATCH)]


def test_the_stage_writes_a_training_text(tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path) -> None:
    config = Generate(tokens=200, prompts=str(tiny_text), prompt_tokens=5, max_new_tokens=12)
    outcome = sample(tiny_checkpoint, tmp_path / "sampled", config)
    text = tmp_path / "sampled" / TEXT_FILE
    tokenizer = load_tokenizer(tiny_checkpoint)
    rows = list(Documents(str(text), "all"))
    start = tokenizer.decode(read_windows(str(tiny_text), "train", tokenizer, size=1, seq_len=5)[0])

    assert 200 <= outcome.artifact.details["tokens"] < 200 + 12
    assert outcome.artifact.details["samples"] == len(rows)
    assert str(rows[0]).startswith(start)
    assert all(row.keys() == {"text"} for row in map(json.loads, text.read_bytes().splitlines()))
    assert sorted(path.name for path in text.parent.iterdir()) == ["artifact.json", TEXT_FILE]
    assert sample(tiny_checkpoint, tmp_path / "sampled", config).skipped


class Killed(BaseException):
    """Stands for a process that ends anywhere."""


def test_killed_and_continued_to_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Generate(tokens=400, max_new_tokens=6)
    sample(tiny_checkpoint, tmp_path / "whole", config)
    whole = (tmp_path / "whole" / TEXT_FILE).read_bytes()
    real, drawn = generate.write_json, []

    def killed_before_recording(path: Path, value: Any) -> None:
        if path.name == generate.PROGRESS_FILE:
            drawn.append(value["num_batches"])
            if value["num_batches"] in kills:
                kills.remove(value["num_batches"])
                raise Killed
        real(path, value)

    monkeypatch.setattr(generate, "write_json", killed_before_recording)
    kills = [1, 3]
    for _ in range(2):
        with pytest.raises(Killed):
            sample(tiny_checkpoint, tmp_path / "parts", config)
    sample(tiny_checkpoint, tmp_path / "parts", config)

    assert (tmp_path / "parts" / TEXT_FILE).read_bytes() == whole
    assert drawn[:5] == [1, 1, 2, 3, 3]


def test_a_model_that_ends_every_sample_at_once(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        hidden = model.model(torch.tensor([[make_tokenizer().bos_token_id]])).last_hidden_state[0, 0]
        model.lm_head.weight[EOS_ID] = 100 * hidden
    checkpoint = save_checkpoint(tmp_path / "silent", model)

    with pytest.raises(VerificationError, match="ends every sample"):
        sample(checkpoint, tmp_path / "out", Generate(tokens=10, max_new_tokens=4))


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "by the class"])
def test_samples_longer_than_the_context(declared: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    if not declared:  # Llama's class takes 2,048
        change_json(model / "config.json", lambda config: config.pop("max_position_embeddings"))
    with pytest.raises(UsageError, match="longer than the model's context") as caught:
        sample(model, tmp_path / "out", Generate(tokens=10, max_new_tokens=2048))
    assert caught.value.found == 2049


def test_the_command(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["generate", str(tiny_checkpoint), "--tokens", "50", "--max-new-tokens", "8", "-o", str(out)]

    assert invoke([*arguments, "--dtype", "float32", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [result["stage"], result["details"]["prompts"]] == ["generate", None]
    assert result["details"]["samples"] == len((out / TEXT_FILE).read_bytes().splitlines())
    assert invoke([*arguments[:3], "0", "-o", str(tmp_path / "none")]) == 2
    assert "no text is to be sampled" in capsys.readouterr().err


def count_one_more(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "num_tokens": record["num_tokens"] + 1}))


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        (TEXT_FILE, DAMAGES["truncated"]),
        (TEXT_FILE, DAMAGES["flipped"]),
        (TEXT_FILE, DAMAGES["missing"]),
        (generate.PROGRESS_FILE, count_one_more),
    ],
    ids=["shorter", "altered", "deleted", "progress"],
)
def test_an_altered_text_is_not_continued(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, alter: Any
) -> None:
    config = Generate(tokens=400, max_new_tokens=6)
    real = generate.write_json

    def killed_after_recording(path: Path, value: Any) -> None:
        real(path, value)
        if value.get("num_batches") == 2:
            raise Killed

    monkeypatch.setattr(generate, "write_json", killed_after_recording)
    with pytest.raises(Killed):
        sample(tiny_checkpoint, tmp_path / "parts", config)
    monkeypatch.undo()
    partial = tmp_path / "parts.partial"
    alter(partial / name)

    with pytest.raises(VerificationError) as caught:
        sample(tiny_checkpoint, tmp_path / "parts", config)
    assert caught.value.where == str(partial / name)
    assert str(partial) in str(caught.value.hint)
