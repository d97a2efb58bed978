"""Chat quality against plain transformers: its template, its mask, its logits, its `generate`."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from compressor.evaluation.chat_record import ChatItems, read_items
from tests.chat_models import (
    CHATML,
    CHATS,
    MARKED_CHATML,
    chat_tokenizer,
    learned_model,
    logits_of,
    marked,
    messages_of,
    save_chat_model,
    write_chats,
)
from tests.corruptions.formats import change_json
from tests.integration.command import command_here, succeed_here
from tests.records import record_again
from tests.tiny_models import EOS_ID, PAD_ID, edit_json, edit_tensors, make_model
from tests.unit.exporters.test_evaluated import computing_in_fp8

LIMIT = 24
CONSTANT = 0  # the token of a model whose logits are all alike


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, a teacher, a student that forgot a little, and one of constant output."""
    root = tmp_path_factory.mktemp("chat")
    write_chats(root / "chats.jsonl")
    teacher = learned_model()
    save_chat_model(root / "teacher", teacher)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in teacher.parameters():
            parameter.add_(0.15 * parameter.std() * torch.randn_like(parameter))
    save_chat_model(root / "student", teacher)
    save_chat_model(root / "constant", teacher)
    edit_tensors(root / "constant", lambda tensors: tensors["model.norm.weight"].zero_())
    return root


@pytest.fixture(scope="module")
def measured(place: Path) -> Any:
    """The three of them: the command's document."""
    models = [place / name for name in ("teacher", "student", "constant")]
    return evaluate(*models, chats=place / "chats.jsonl", out=place / "out")


def evaluate(*models: Path, chats: Path, out: Path) -> Any:
    options = ("--chat-data", chats, "--chat-size", 6, "--chat-max-tokens", LIMIT, "--dtype", "float32")
    return succeed_here("evaluate", *models, *options, "-o", out)


def losses_of(directory: Path, chat: list[tuple[str, str]]) -> tuple[list[float], torch.Tensor]:
    """The loss of every token of the assistant, and the logits that predict it."""
    ids, mask = marked(chat)
    places = [place for place, counts in enumerate(mask) if counts]
    logits = logits_of(directory, ids)[[place - 1 for place in places]]
    tokens = torch.tensor([ids[place] for place in places])
    return (-logits.log_softmax(-1)[range(len(places)), tokens]).tolist(), logits


@pytest.mark.parametrize("template", [CHATML, MARKED_CHATML], ids=["by prefix", "by blocks"])
def test_perplexity_is_that_of_the_assistants_tokens_alone(
    place: Path, tmp_path: Path, template: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "student", dtype=torch.float32)
    directory = save_chat_model(tmp_path / "model", model, template)
    record = evaluate(directory, chats=place / "chats.jsonl", out=tmp_path / "out")
    losses = [losses_of(place / "student", chat)[0] for chat in CHATS]
    turns = record["models"]["model"]["turns"]
    assert record["conversation_tokens"] == [len(one) for one in losses]
    assert turns["conversation_nll"] == pytest.approx([sum(one) / len(one) for one in losses], rel=1e-5)
    every = [loss for one in losses for loss in one]
    assert turns["perplexity"] == pytest.approx(math.exp(sum(every) / len(every)), rel=1e-5)
    assert turns["kl"] is None


def test_agreement_with_the_first_model_over_the_same_tokens(place: Path, measured: Any) -> None:
    kl, same = [], []
    for chat in CHATS:
        _, ours = losses_of(place / "teacher", chat)
        _, theirs = losses_of(place / "student", chat)
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        kl += (p.exp() * (p - q)).sum(-1).tolist()
        same += (p.argmax(-1) == q.argmax(-1)).tolist()
    turns = measured["models"]["student"]["turns"]
    assert turns["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert turns["top1"] == pytest.approx(sum(same) / len(same), rel=1e-6)
    assert 0 < turns["top1"] < 1


@pytest.mark.parametrize("name", ["teacher", "student", "constant"])
def test_replies_are_those_of_generate_without_sampling(place: Path, measured: Any, name: str) -> None:
    tokenizer = chat_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float32)
    shown = [json.loads(line) for line in (place / "out" / "replies.jsonl").read_text().splitlines()]
    for chat, reply, line in zip(CHATS, read_items(place / "out", name).replies, shown, strict=True):
        asked = tokenizer.apply_chat_template(
            messages_of(chat)[:-1], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            found = model.generate(asked["input_ids"], do_sample=False, max_new_tokens=LIMIT)
        prompt = asked["input_ids"].shape[1]
        assert list(reply) == found[0, prompt:].tolist()
        assert line["prompt"] == tokenizer.decode(asked["input_ids"][0])
        assert line["replies"][name] == tokenizer.decode(found[0, prompt:])
    assert measured["protocol"]["end_tokens"] == [tokenizer.eos_token_id]


def test_a_line_break_in_the_templates_block_does_not_hide_the_token_that_ends_a_turn(
    place: Path, tmp_path: Path
) -> None:
    template = MARKED_CHATML.replace(
        "<|end|>{% endgeneration %}{% else", "<|pad|>\n{% endgeneration %}{% else"
    )
    assert template != MARKED_CHATML
    directory = save_chat_model(tmp_path / "model", make_model(num_hidden_layers=1), template)
    record = evaluate(directory, chats=place / "chats.jsonl", out=tmp_path / "out")
    assert record["protocol"]["end_tokens"] == [EOS_ID, PAD_ID]


def test_a_model_that_learned_its_answers_gives_them(place: Path, measured: Any) -> None:
    lines = [json.loads(line) for line in (place / "out" / "replies.jsonl").read_text().splitlines()]
    assert [line["replies"]["teacher"] for line in lines] == [f"{chat[-1][1]}<|end|>" for chat in CHATS]
    replies = measured["models"]["teacher"]["replies"]
    assert (replies["finished"], replies["degenerate"]) == (1, 0)


def test_likelihood_and_relevance_of_replies_under_the_first_model(place: Path, measured: Any) -> None:
    tokenizer = chat_tokenizer()
    prompts = [
        tokenizer.apply_chat_template(messages_of(chat)[:-1], add_generation_prompt=True, return_dict=True)
        for chat in CHATS
    ]
    for name in ("teacher", "student", "constant"):
        items = read_items(place / "out", name)
        assert isinstance(items, ChatItems)
        for number, reply in enumerate(items.replies):
            own, other = (
                _mean(place / "teacher", prompts[one % len(CHATS)]["input_ids"], list(reply))
                for one in (number, number + 1)
            )
            assert items.log_likelihood[number] == pytest.approx(own, rel=1e-4, abs=1e-5)
            assert items.relevance[number] == pytest.approx(own - other, rel=1e-4, abs=1e-4)
        replies = measured["models"][name]["replies"]
        assert replies["log_likelihood"] == pytest.approx(np.mean(items.log_likelihood))
        assert replies["relevance"] == pytest.approx(np.mean(items.relevance))


def _mean(directory: Path, prompt: list[int], reply: list[int]) -> float:
    """The mean log-probability of the tokens that do not complete four that the reply held before."""
    logits = logits_of(directory, prompt + reply)
    found = []
    for i, token in enumerate(reply):
        before = [reply[j - 3 : j + 1] for j in range(3, i)]
        if i < 3 or reply[i - 3 : i + 1] not in before:
            found.append(logits[len(prompt) + i - 1].log_softmax(-1)[token].item())
    return sum(found) / len(found)


def test_differences_have_the_interval_of_a_ratio_of_sums(place: Path, measured: Any) -> None:
    ours, theirs = ([losses_of(place / name, chat)[0] for chat in CHATS] for name in ("teacher", "student"))
    counts = np.array([len(one) for one in ours])
    sums = np.array([sum(b) - sum(a) for a, b in zip(ours, theirs, strict=True)])
    ratio = sums.sum() / counts.sum()
    variance = ((sums - ratio * counts) ** 2).sum() / (len(counts) - 1) / len(counts) / counts.mean() ** 2
    reach = stats.t.ppf(0.975, len(counts) - 1) * math.sqrt(variance)
    found = pair(measured, "student", "mean_nll")
    assert found["difference"] == pytest.approx(ratio, rel=1e-4)
    assert (found["low"], found["high"]) == pytest.approx((ratio - reach, ratio + reach), rel=1e-3)
    lengths = [
        [len(reply) for reply in read_items(place / "out", name).replies] for name in ("teacher", "constant")
    ]
    ended = np.array(lengths[0]) - 1  # the teacher ends all, the other none
    test = stats.ttest_rel(lengths[1], ended)
    found = pair(measured, "constant", "tokens")
    assert found["p_value"] == pytest.approx(test.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_an_exported_fp8_checkpoint_is_measured_as_it_computes(
    place: Path, tiny_text: Path, tmp_path: Path
) -> None:
    calibration = ("--calib-data", tiny_text, "--calib-size", 2, "--calib-seq-len", 32)
    quantized, export = tmp_path / "quantized", tmp_path / "export"
    succeed_here("quantize", place / "teacher", "--fp8", *calibration, "-o", quantized)
    succeed_here("export", quantized, "--format", "huggingface", "--precision", "fp8", "-o", export)
    record = evaluate(place / "teacher", export, chats=place / "chats.jsonl", out=tmp_path / "out")
    models = record["models"]
    assert models["teacher"]["executed"] is None
    assert models["export"]["executed"]["precision"] == "fp8"
    model = computing_in_fp8(AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32), export)
    expected = []
    for chat in CHATS:
        ids, mask = marked(chat)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected += [-logits[n - 1, ids[n]].item() for n, counts in enumerate(mask) if counts]
    assert models["export"]["turns"]["mean_nll"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert models["export"]["turns"]["mean_nll"] != pytest.approx(
        models["teacher"]["turns"]["mean_nll"], rel=1e-3
    )


def pair(record: Any, model: str, metric: str) -> Any:
    return next(one for one in record["paired"] if (one["model"], one["metric"]) == (model, metric))


def test_a_student_of_constant_output_looks_bad_in_every_number(place: Path, measured: Any) -> None:
    teacher, constant = (measured["models"][name] for name in ("teacher", "constant"))
    assert constant["turns"]["perplexity"] == pytest.approx(331, rel=1e-5)  # every token alike
    assert teacher["turns"]["perplexity"] < 2
    assert constant["turns"]["information"] == pytest.approx(0, abs=1e-5)
    assert constant["turns"]["kl"] > 3
    assert constant["turns"]["top1"] < 0.1
    replies = constant["replies"]
    assert (replies["finished"], replies["degenerate"]) == (0, 1)
    assert replies["tokens"] == LIMIT > 2 * teacher["replies"]["tokens"]
    assert replies["relevance"] == pytest.approx(0, abs=1e-5)
    for metric, is_higher_better in (
        ("mean_nll", False),
        ("finished", True),
        ("degenerate", False),
        ("tokens", False),
        ("log_likelihood", True),
        ("relevance", True),
    ):
        found = pair(measured, "constant", metric)
        assert (found["high"] < 0) if is_higher_better else (found["low"] > 0), metric


def test_a_student_that_ends_at_once_looks_bad_as_well(place: Path, tmp_path: Path) -> None:
    """Its replies end by themselves, and say nothing."""
    for name in ("teacher", "constant"):
        save_chat_model(tmp_path / name, AutoModelForCausalLM.from_pretrained(place / name))
        own = tmp_path / name / "generation_config.json"
        edit_json(own, eos_token_id=[chat_tokenizer().eos_token_id, CONSTANT])
    models = (tmp_path / "teacher", tmp_path / "constant")
    record = evaluate(*models, chats=place / "chats.jsonl", out=tmp_path / "out")
    teacher, constant = (record["models"][name]["replies"] for name in ("teacher", "constant"))
    assert (constant["finished"], constant["degenerate"], constant["tokens"]) == (0, 1, 0)
    assert (teacher["finished"], teacher["degenerate"]) == (1, 0)
    for metric in ("log_likelihood", "relevance"):
        assert pair(record, "constant", metric)["high"] < 0


def test_text_for_people_and_what_verify_says(place: Path, measured: Any) -> None:
    options = ("--chat-data", place / "chats.jsonl", "--chat-size", 6, "--chat-max-tokens", LIMIT)
    models = [place / name for name in ("teacher", "student", "constant")]
    done = command_here("evaluate", *models, *options, "--dtype", "float32", "-o", place / "out")
    assert done.returncode == 0, done.stderr
    constant = next(line for line in done.stdout.splitlines() if line.startswith("constant"))
    assert constant.split()[1:] == [
        "331.000",
        f"{measured['models']['constant']['turns']['kl']:.4f}",
        f"{measured['models']['constant']['turns']['top1']:.2%}",
        *("0.0%", "100.0%", "24.0"),
        f"{measured['models']['constant']['replies']['log_likelihood']:.3f}",
        f"{measured['models']['constant']['replies']['relevance']:.3f}",
    ]
    assert "degenerate replies [points]" in done.stdout
    assert succeed_here("verify", place / "out")["checked"][0]["num_conversations"] == 6


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "by the class"])
def test_conversations_that_do_not_fit_are_passed_over(declared: bool, tmp_path: Path) -> None:
    long = [("user", "x" * (60 if declared else 2010)), ("assistant", "the rhine")]
    chats = write_chats(tmp_path / "chats.jsonl", [long, *CHATS, [("user", "no answer")]])
    model = save_chat_model(tmp_path / "model", make_model(num_hidden_layers=1, max_position_embeddings=100))
    if not declared:  # Llama's class takes 2,048
        change_json(model / "config.json", lambda config: config.pop("max_position_embeddings"))
    options = ("--chat-data", chats, "--chat-max-tokens", 40, "--dtype", "float32")
    done = command_here("evaluate", model, *options, "--json", "-o", tmp_path / "out")
    assert "2 conversations are passed over" in done.stderr
    assert "6 conversations to measure on, not 32" in done.stderr
    text = json.loads(done.stdout)["text"]
    assert (text["conversations"], text["passed_over"]) == (6, 2)


REFUSED = {
    "no template": (
        lambda root: save_chat_model(root / "base", make_model(), None),
        "no chat template",
        "--data",
    ),
    "another template": (
        lambda root: save_chat_model(root / "other", make_model(), CHATML.replace("assistant", "model")),
        "another chat template than the first",
        "evaluate each alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_compared(case: str, place: Path, tmp_path: Path) -> None:
    make, message, hint = REFUSED[case]
    models = [make(tmp_path)] if case == "no template" else [place / "teacher", make(tmp_path)]
    done = command_here("evaluate", *models, "--chat-data", place / "chats.jsonl", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert hint in done.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "running text"}], "this row is none"),
        ([{"prompt": "a", "completion": "b"}], "this row is none"),
        ([{"messages": messages_of(CHATS[0])}], "too few conversations"),
        ([{"messages": messages_of(CHATS[0])}, {"messages": messages_of(CHATS[1][:1])}], "1 of 2"),
    ],
)
def test_texts_that_hold_no_chat(
    rows: list[dict[str, object]], message: str, place: Path, tmp_path: Path
) -> None:
    chats = tmp_path / "rows.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command_here("evaluate", place / "teacher", "--chat-data", chats, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "text.txt"), "give one of"),
        (("--tasks", "piqa"), "give one of"),
        (("--chat-size", "1"), "--chat-size"),
        (("--chat-max-tokens", "7"), "--chat-max-tokens"),
        (("--size", "100"), "where: --size"),
        (("--seq-len", "64", "--size", "100"), "where: --seq-len, --size"),
        (("--shard", "1/2"), "only tasks are measured in shares"),
    ],
)
def test_options_that_contradict(options: tuple[str, ...], message: str, place: Path) -> None:
    words = ("evaluate", place / "teacher", "--chat-data", place / "chats.jsonl", "-o", place / "never")
    done = command_here(*words, *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_choices_without_conversations_are_refused(place: Path) -> None:
    words = ("evaluate", place / "teacher", "--data", place / "chats.jsonl", "--chat-size", 5)
    done = command_here(*words, "-o", place / "never")
    assert done.returncode == 2
    assert "chat_data names none" in done.stderr


def _plant(items: dict[str, Any], change: str) -> None:
    replies = items["replies"]
    if change == "a reply that loops":
        replies[0] = [5, 6, 5, 6, 5, 6, replies[0][-1]]
    elif change == "a reply that goes on":
        replies[0] = [replies[0][-1], *replies[0]]
    elif change == "a shorter reply":
        replies[2] = replies[2][1:]
    elif change == "a conversation lost":
        items.update({name: values[1:] for name, values in items.items()})
    else:
        items[change][1] -= 0.25


@pytest.mark.parametrize(
    "change",
    [
        *("a reply that loops", "a reply that goes on", "a shorter reply", "a conversation lost"),
        *("log_likelihood", "relevance", "kl"),
    ],
)
def test_verify_finds_what_was_altered_and_recorded_again(
    change: str, place: Path, measured: Any, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(place / "out", tmp_path / "out"))
    file = out / "items" / ("teacher.json" if change.startswith("a ") else "student.json")
    items = json.loads(file.read_text())
    _plant(items, change)
    file.write_text(json.dumps(items))
    record_again(out)
    done = command_here("verify", out)
    assert done.returncode == 8, change
