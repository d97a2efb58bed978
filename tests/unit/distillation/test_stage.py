"""The distill stage on tiny models: what a recipe asks for is what happens, and is said in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.core.console import Console
from compressor.core.errors import UnsupportedError, UsageError
from compressor.distillation.distill_stage import DISTILL, GENERATED, STORED_LOGITS
from compressor.distillation.logits_stage import LOGITS
from compressor.models.source import open_checkpoint, resolve_source
from compressor.recipe.recipe import Distill
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext, StageOutcome, execute
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint

BASE = {
    "tokens": 8 * 2 * 32,
    "context_length": 32,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "save_steps": 4,
    "report_to": (),
}


def as_source(path: Path) -> ModelArtifact:
    return open_checkpoint(resolve_source(str(path)), path.parent / "scratch", dtype="float32")


def make_context(teacher: ModelArtifact | None, **others: ModelArtifact) -> StageContext:
    where = {"seed": 0, "device": "cpu", "dtype": "float32"}
    return StageContext(console=Console(), teacher=teacher, others=others, **where)


class Setup:
    """A student of one layer, a teacher of four, and a text."""

    def __init__(self, root: Path, text: Path) -> None:
        student = make_model(seed=1, hidden_size=32, num_hidden_layers=1)
        self.root, self.text, self.out = root, text, root / "out"
        self.student = as_source(save_checkpoint(root / "student", student))
        self.teacher = as_source(save_checkpoint(root / "teacher", make_model(seed=2, num_hidden_layers=4)))

    def config(self, **settings: Any) -> Distill:
        return Distill.model_validate({**BASE, "data": str(self.text), **settings})

    def run(self, context: StageContext | None = None, *, name: str = "out", **settings: Any) -> StageOutcome:
        context = context or make_context(self.teacher)
        return execute(DISTILL, self.config(**settings), self.student, self.root / name, context)

    def distill(self, context: StageContext | None = None, **settings: Any) -> dict[str, Any]:
        return self.run(context, **settings).artifact.details

    def store(self, **settings: Any) -> ModelArtifact:
        config, out_dir = self.config(**settings), self.root / "store"
        return execute(LOGITS, config, self.teacher, out_dir, make_context(None)).artifact


@pytest.fixture
def setup(tmp_path: Path, tiny_text: Path) -> Setup:
    return Setup(tmp_path, tiny_text)


def domains(make_text: Any) -> list[dict[str, Any]]:
    return [
        {"name": name, "data": str(make_text(num_words=1500, seed=seed)), "weight": weight}
        for seed, (name, weight) in enumerate((("first", 3.0), ("second", 1.0)))
    ]


def test_a_deep_cut_brings_losses_on_states_and_says_so(setup: Setup) -> None:
    details = setup.distill()
    assert details["loss"] == (
        "forward KL on logits + cosine on hidden states (teacher:student 1:0) + cosine on embeddings, "
        "mean over tokens"
    )
    assert "1 of 4 layers" in details["loss_rule"]
    assert details["teacher"] == "in memory, frozen"
    names = set(load_file(setup.out / "model.safetensors"))
    assert names == {name for name, _ in make_model(num_hidden_layers=1).named_parameters()}


def test_weighted_domains_are_counted_and_their_losses_kept(setup: Setup, make_text: Any) -> None:
    details = setup.distill(domains=domains(make_text), batch_size=4)
    assert details["domains"] == {"first": 12, "second": 4}
    assert set(details["curve"]["domain_loss"]) == {"first", "second"}


def test_dynamic_batches_report_the_course_of_the_weights(setup: Setup, make_text: Any) -> None:
    dynamic = {"variant": "clipped", "interval_steps": 2, "eval_size": 2}
    course = setup.distill(domains=domains(make_text), dynamic_batches=dynamic)["dynamic_batches"]
    assert [update["step"] for update in course["updates"]] == [2, 4, 6, 8]
    for update in course["updates"]:
        assert sum(update["weights"]) == pytest.approx(1)
    assert len(course["reference_losses"]) == 2


def test_generated_text_is_one_more_domain(setup: Setup) -> None:
    sampled = setup.root / "sampled"
    sampled.mkdir()
    rows = [json.dumps({"text": line}) for line in setup.text.read_text().splitlines()]
    (sampled / "text.jsonl").write_text("\n".join(rows) + "\n")
    generated = ModelArtifact(
        path=sampled, stage="generate", fingerprint="of the text", lineage=(), num_parameters=0
    )
    context = make_context(setup.teacher, **{GENERATED: generated})
    details = setup.distill(context, generate={"tokens": 1, "weight": 3.0}, batch_size=4)
    assert details["domains"] == {"text": 4, "generated": 12}


def test_stored_logits_replace_the_teacher(setup: Setup) -> None:
    """With every token stored, the student learns what it learns from the teacher itself."""
    off = {"hidden_state_loss": "off", "embedding_loss": "off"}
    in_memory = setup.distill(name="memory", **off)
    store = setup.store(top_k=VOCAB_SIZE)
    context = make_context(None, **{STORED_LOGITS: store})
    details = setup.distill(context, teacher_logits=str(store.path), **off)
    assert details["teacher"] == f"stored logits, {VOCAB_SIZE} tokens per position"
    assert details["curve"]["loss"] == pytest.approx(in_memory["curve"]["loss"], rel=1e-3)


def test_a_teacher_corrected_alongside_learns_too(setup: Setup) -> None:
    settings = {"correction": {"mode": "alongside"}, "tokens": 40 * 2 * 32, "save_steps": 10}
    details = setup.distill(hidden_state_loss="off", **settings)
    assert details["teacher"] == "in memory, corrected alongside"
    # The teacher's own cross-entropy is part of the loss, and falls.
    assert details["curve"]["loss"][-1] < details["curve"]["loss"][0] - 0.1


def test_cross_entropy_alone_needs_no_teacher_in_memory(setup: Setup) -> None:
    details = setup.distill(kl_weight=0)
    assert details["loss"] == "cross-entropy, mean over tokens"
    assert details["teacher"] == "none: the loss needs no teacher"


def test_few_of_the_teachers_tokens_are_warned_of(setup: Setup) -> None:
    assert any("fewer than 1000" in warning for warning in setup.run(top_k=10).warnings)


def test_a_student_without_anything_to_learn_from_is_refused(setup: Setup) -> None:
    with pytest.raises(UsageError, match="needs a teacher"):
        setup.distill(make_context(None))


def test_another_vocabulary_is_refused(setup: Setup) -> None:
    path = save_checkpoint(setup.root / "other", make_model(vocab_size=VOCAB_SIZE + 8))
    with pytest.raises(UnsupportedError, match="different vocabularies"):
        setup.distill(make_context(as_source(path)))


def test_another_tokenizer_of_the_same_size_is_refused(setup: Setup) -> None:
    file = setup.teacher.path / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UnsupportedError, match="different vocabularies") as caught:
        setup.distill()
    assert "token 'a'" in str(caught.value)


def test_a_head_that_repeats_the_tied_embedding_is_no_parameter(setup: Setup) -> None:
    file = setup.student.path / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, file, metadata={"format": "pt"})
    setup.student = as_source(setup.student.path)
    setup.distill()
    assert load_file(setup.out / "model.safetensors").keys() == weights.keys() - {"lm_head.weight"}


def test_windows_that_are_not_stored_are_missed_before_any_training(setup: Setup) -> None:
    store = setup.store(tokens=BASE["tokens"] // 2)
    with pytest.raises(UsageError, match="not among the stored"):
        setup.distill(make_context(None, **{STORED_LOGITS: store}), teacher_logits=str(store.path))
    assert not list(setup.root.glob("out*"))


def test_isolated_documents_leave_out_what_crosses_them(setup: Setup) -> None:
    setup.text = setup.root / "rows.jsonl"
    setup.text.write_text("".join(json.dumps({"text": f"one two {n}"}) + "\n" for n in range(400)))
    losses = [
        setup.distill(name=str(isolate), intra_document_masking=isolate)["curve"]["loss"]
        for isolate in (True, False)
    ]
    assert losses[0] != losses[1]
    assert all(torch.isfinite(torch.tensor(losses)).flatten().tolist())
