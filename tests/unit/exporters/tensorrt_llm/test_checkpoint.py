"""Written, read back, equal: every family, precision and cut, against weights rounded by hand here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.config.portable import write_config
from compressor.models.load import load_model
from compressor.quantization.amax import read_amax
from exporters.tensorrt_llm.config import Parallelism
from exporters.tensorrt_llm.reader import TrtLlmReader, load_trtllm_model
from exporters.tensorrt_llm.rounding import check_stored
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint
from tests.unit.exporters.tensorrt_llm.conftest import (
    EXPORTED,
    LLAMA3,
    MESHES,
    Students,
    make_llama31,
    record_amax,
    write,
)

IDS = torch.randint(0, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(3))


def logits_of(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(IDS, use_cache=False).logits
    return result


def cast_by_hand(student: Path, dtype: torch.dtype) -> Any:
    """The student with cast weights; norms that add one to their weight are cast with it added."""
    model = load_model(student, dtype="float32", device="cpu")
    offset = ModelAdapter(model).family.norm_offset
    for name, parameter in model.named_parameters():
        shift = offset if name.endswith("norm.weight") else 0.0
        parameter.data = (parameter.data + shift).to(dtype).float() - shift
    return model


def quantised_by_hand(student: Path) -> Any:
    """The student with shared scales written out: q, k, v one; gate and up one; o and down their own."""
    model, amax = cast_by_hand(student, torch.bfloat16), read_amax(student)
    original = load_model(student, dtype="float32", device="cpu")
    has_gate = ModelAdapter(model).family.gated_mlp
    for index in range(len(ModelAdapter(model).layers)):
        layer = f"model.layers.{index}."
        sharing = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
        sharing += [["mlp.gate_proj", "mlp.up_proj"] if has_gate else ["mlp.up_proj"], ["mlp.down_proj"]]
        for names in sharing:
            weights = {name: original.get_submodule(layer + name).weight for name in names}
            scale = max(weight.abs().max() for weight in weights.values()) / 448
            input_scale = max(amax[f"{layer}{name}.input_amax"] for name in names) / 448
            for name, weight in weights.items():
                module = model.get_submodule(layer + name)
                module.weight.data = (weight / scale).to(torch.float8_e4m3fn).float() * scale
                module.register_forward_pre_hook(
                    lambda _module, args, s=input_scale: (
                        ((args[0] / s).clamp(-448, 448).to(torch.float8_e4m3fn).float() * s),
                    )
                )
    return model


def round_attention(monkeypatch: pytest.MonkeyPatch, amax: dict[str, torch.Tensor]) -> None:
    """Round keys and values on their way into attention: one scale a layer, and never below one."""
    scales = []
    for layer in range(3):
        largest = max(amax[f"model.layers.{layer}.self_attn.{kind}_amax"].item() for kind in "kv")
        scales.append(torch.tensor(max(1.0, largest / 448)))
    attention, layers = torch.nn.functional.scaled_dot_product_attention, itertools.cycle(scales)

    def rounded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        scale = next(layers)
        key, value = ((part / scale).to(torch.float8_e4m3fn).float() * scale for part in (key, value))
        return attention(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", rounded)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", EXPORTED)
def test_an_fp8_cache_is_read_back_with_its_scales(
    students: Students, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, tied: bool
) -> None:
    student = students.make(model_type, tied=tied, dtype=torch.float32)
    by_hand = quantised_by_hand(student)
    without = logits_of(by_hand)
    with monkeypatch.context() as patched:
        round_attention(patched, read_amax(student))
        expected = logits_of(by_hand)
    assert not torch.equal(expected, without)
    for mesh in MESHES:
        where = tmp_path / f"{mesh.tp_size}-{mesh.pp_size}"
        made = write(student, where, precision="fp8", parallelism=mesh, fp8_kv_cache=True)
        assert torch.equal(logits_of(load_trtllm_model(made, device="cpu")), expected), mesh


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
@pytest.mark.parametrize("model_type", EXPORTED)
def test_what_is_read_back_computes_the_rounded_students_logits(
    students: Students, tmp_path: Path, model_type: str, precision: str, tied: bool
) -> None:
    student = students.make(model_type, tied=tied, dtype=torch.float32)
    if precision == "fp8":
        expected = logits_of(quantised_by_hand(student))
    else:
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        expected = logits_of(cast_by_hand(student, dtype))
    assert not torch.equal(expected, logits_of(load_model(student, dtype="float32", device="cpu")))
    for mesh in MESHES:
        where = tmp_path / f"{mesh.tp_size}-{mesh.pp_size}"
        made = write(student, where, precision=precision, parallelism=mesh)
        assert torch.equal(logits_of(load_trtllm_model(made, device="cpu")), expected), mesh
        assert len(list(made.glob("rank*.safetensors"))) == mesh.world_size


@pytest.mark.parametrize(
    ("model_type", "shape"),
    [("llama", {}), ("llama", {"hidden_size": 48, "head_dim": 16}), ("qwen2", {}), ("qwen3", {})],
)
def test_a_16_bit_student_in_its_own_dtype_keeps_its_logits(
    students: Students, tmp_path: Path, model_type: str, shape: dict[str, int]
) -> None:
    student = students.make(model_type, tied=True, dtype=torch.bfloat16, **shape)
    made = write(student, tmp_path / "made", precision="bf16", parallelism=Parallelism(tp_size=2))
    assert json.loads((made / "config.json").read_text())["head_size"] == 16  # pruned or not
    expected = logits_of(load_model(student, dtype="float32", device="cpu"))
    assert torch.equal(logits_of(load_trtllm_model(made, device="cpu")), expected)
    with TrtLlmReader(made) as reader, CheckpointReader(student) as original:
        assert check_stored(reader, original, None).is_lossless


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_rope_base_and_scaling_are_kept(tmp_path: Path, precision: str) -> None:
    student = save_checkpoint(tmp_path / "student", make_llama31())
    record_amax(student)
    made = write(student, tmp_path / "made", precision=precision, parallelism=Parallelism())
    config = json.loads((made / "config.json").read_text())
    assert config["rotary_base"] == 500_000.0
    assert config["rotary_scaling"] == LLAMA3
    exact = logits_of(load_trtllm_model(made, device="cpu"))
    for field, value in (("rotary_base", 10_000.0), ("rotary_scaling", None)):
        (made / "config.json").write_text(json.dumps({**config, field: value}))
        assert not torch.equal(logits_of(load_trtllm_model(made, device="cpu")), exact), field
        (made / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != field}))
        with pytest.raises(VerificationError, match=field):
            load_trtllm_model(made, device="cpu")


def test_names_and_shapes_of_two_by_two_ranks(students: Students, tmp_path: Path) -> None:
    student = students.make("llama", tied=True, dtype=torch.bfloat16)
    made = write(
        student,
        tmp_path / "made",
        precision="fp8",
        parallelism=Parallelism(tp_size=2, pp_size=2),
        fp8_kv_cache=True,
    )
    ranks = [load_file(made / f"rank{rank}.safetensors") for rank in range(4)]
    assert ranks[0]["transformer.vocab_embedding.weight"].shape == (166, 64)  # 331 padded to 332
    assert not ranks[1]["transformer.vocab_embedding.weight"][-1].any()
    assert ranks[2]["lm_head.weight"].shape == (166, 64)
    assert "lm_head.weight" not in ranks[0]
    assert "transformer.vocab_embedding.weight" not in ranks[2]
    layers = [{name.split(".")[2] for name in rank if ".layers." in name} for rank in ranks]
    assert layers == [{"0", "1"}, {"0", "1"}, {"0"}, {"0"}]  # three layers: the first stage has one more
    prefix = "transformer.layers.0."
    assert ranks[1][f"{prefix}attention.qkv.weight"].shape == ((2 + 1 + 1) * 16, 64)
    assert ranks[1][f"{prefix}attention.dense.weight"].shape == (64, 32)
    assert ranks[1][f"{prefix}mlp.fc.weight"].shape == ranks[1][f"{prefix}mlp.gate.weight"].shape == (96, 64)
    assert ranks[1][f"{prefix}mlp.proj.weight"].shape == (64, 96)
    assert ranks[1][f"{prefix}mlp.fc.weight"].dtype == torch.float8_e4m3fn
    scale = ranks[0][f"{prefix}attention.kv_cache_scaling_factor"]
    assert (scale.dtype, scale.shape, scale.item()) == (torch.float32, (1,), pytest.approx(900 / 448))
    assert ranks[2][f"{prefix}attention.kv_cache_scaling_factor"].item() == 1.0  # clamped


def test_shared_key_heads_are_repeated_in_order(students: Students, tmp_path: Path) -> None:
    student = students.make("llama", tied=True, dtype=torch.bfloat16)
    made = write(student, tmp_path / "made", precision="bf16", parallelism=Parallelism(tp_size=4))
    keys = load_file(student / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    for rank, head in enumerate((0, 0, 1, 1)):
        stored = load_file(made / f"rank{rank}.safetensors")["transformer.layers.0.attention.qkv.weight"]
        assert torch.equal(stored[16:32], keys[16 * head : 16 * (head + 1)])


def test_layernorm_1p_is_stored_with_its_one(students: Students, tmp_path: Path) -> None:
    """The tensor table of this GPT-style family, written by hand."""
    student = students.make("nemotron", tied=False, dtype=torch.float32)
    made = write(student, tmp_path / "made", precision="bf16", parallelism=Parallelism())
    stored, original = load_file(made / "rank0.safetensors"), load_file(student / "model.safetensors")
    table = {
        "attention.dense.weight": (64, 64),
        "attention.qkv.weight": (128, 64),
        "input_layernorm.bias": (64,),
        "input_layernorm.weight": (64,),
        "mlp.fc.weight": (192, 64),
        "mlp.proj.weight": (64, 192),
        "post_layernorm.bias": (64,),
        "post_layernorm.weight": (64,),
    }
    wanted = {
        f"transformer.layers.{layer}.{name}": shape for layer in range(3) for name, shape in table.items()
    }
    wanted |= {"transformer.vocab_embedding.weight": (VOCAB_SIZE, 64), "lm_head.weight": (VOCAB_SIZE, 64)}
    wanted |= {"transformer.ln_f.weight": (64,), "transformer.ln_f.bias": (64,)}
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == wanted
    expected = (original["model.norm.weight"] + 1).to(torch.bfloat16)
    assert torch.equal(stored["transformer.ln_f.weight"], expected)
    config = json.loads((made / "config.json").read_text())
    facts = {"rotary_pct": 0.5, "hidden_act": "squared-relu", "architecture": "NemotronForCausalLM"}
    assert {name: config[name] for name in facts} == facts


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.self_attn.o_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.embed_tokens.weight",
    ],
)
def test_an_overflowing_cast_is_refused_by_name(tmp_path: Path, name: str) -> None:
    model = make_model("qwen2")
    dict(model.named_parameters())[name].flatten()[-1] = 70_000.0
    student = save_checkpoint(tmp_path / "student", model)
    write(student, tmp_path / "bf16", precision="bf16", parallelism=Parallelism())
    with pytest.raises(VerificationError, match="overflows") as caught:
        write(student, tmp_path / "fp16", precision="fp16", parallelism=Parallelism())
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "mesh", "field"),
    [
        ({}, Parallelism(tp_size=3), "num_attention_heads"),
        ({}, Parallelism(pp_size=4), "num_hidden_layers"),
        ({"intermediate_size": 190}, Parallelism(tp_size=4), "intermediate_size"),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 3},
            Parallelism(tp_size=2),
            "num_key_value_heads",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, Parallelism(), "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, Parallelism(), "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, Parallelism(), "hidden_act"),
        ({"sliding_window": 512}, Parallelism(), "sliding_window"),
    ],
)
def test_what_a_checkpoint_cannot_express_is_refused(
    students: Students, tmp_path: Path, changes: dict[str, Any], mesh: Parallelism, field: str
) -> None:
    config = read_config(students.make("mistral", tied=True, dtype=torch.float32)) | changes
    if "rope_scaling" in changes:
        config.pop("rope_parameters")
    (tmp_path / "student").mkdir()
    write_config(tmp_path / "student", config)
    with pytest.raises(UnsupportedError, match=field):
        write(tmp_path / "student", tmp_path / "made", precision="bf16", parallelism=mesh)
