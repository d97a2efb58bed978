"""Faults to plant, by the kind of checkpoint that they change.

Each is a function of a directory that must really change its bytes; whether it did is asserted by the
suite, not here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.runs.artifact import sha256_of_file
from tests.corruptions.formats import HF_LAYER, Tensors, change_json, change_tensors

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ARTIFACT = "artifact.json"
VERIFICATION = "verification.json"
ADAPTER = "adapter/adapter_model.safetensors"
ADAPTER_CONFIG = "adapter/adapter_config.json"
ROTATION = "rotation.safetensors"

Plant = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One corruption; with `only_plain`, consistent sums make no sense for it."""

    name: str
    plant: Plant
    only_plain: bool = False


def tensors(change: Callable[[Tensors], None], file: str = WEIGHTS) -> Plant:
    return lambda directory: change_tensors(directory / file, change)


def fields(change: Callable[[dict[str, Any]], None], file: str = CONFIG) -> Plant:
    return lambda directory: change_json(directory / file, change)


def faults_of(changes: dict[str, Any], kind: Callable[..., Plant], *file: str) -> list[Fault]:
    return [Fault(name=name, plant=kind(change, *file)) for name, change in changes.items()]


def chosen(change: Callable[..., None]) -> Callable[..., Callable[[Any], None]]:
    """A change of something that is told later what it is to change."""
    return lambda *choice: lambda found: change(found, *choice)


@chosen
def flip_bit(state: Tensors, name: str) -> None:
    """The lowest bit of a tensor's second value."""
    state[name].view(torch.uint8).view(-1)[state[name].element_size()] ^= 1


@chosen
def swap(state: Tensors, first: str, second: str) -> None:
    """Exchange all tensors of two modules, their scales included."""
    suffixes = [name.removeprefix(first) for name in state if name.startswith(first)]
    assert suffixes
    for suffix in suffixes:
        one, two = state[first + suffix], state[second + suffix]
        assert one.shape == two.shape
        state[first + suffix], state[second + suffix] = two, one


@chosen
def swap_rows(state: Tensors, name: str, first: slice, second: slice) -> None:
    kept = state[name][first].clone()
    state[name][first] = state[name][second]
    state[name][second] = kept


@chosen
def set_value(state: Tensors, name: str, change_it: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state[name] = change_it(state[name]).to(state[name].dtype)


@chosen
def drop(state: Tensors, name: str) -> None:
    del state[name]


@chosen
def third_nonzero(state: Tensors, name: str) -> None:
    """A small value where a group has a zero."""
    row = state[name][3]
    if row.element_size() == 1:  # E4M3, of which torch compares nothing
        bits = row.view(torch.uint8)
        bits[((bits & 0x7F) == 0).nonzero()[0]] = 0x20
    else:
        row[(row == 0).nonzero()[0]] = 2**-10


def cut(file: str) -> Plant:
    """The last hundred bytes of a file missing."""
    return lambda directory: os.truncate(directory / file, (directory / file).stat().st_size - 100)


def delete(name: str) -> Plant:
    return lambda directory: _remove(directory / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def edit_figure(record: dict[str, Any]) -> None:
    """Make a record's first figure better than it was."""
    assert _edit(record["details"])


def _edit(node: Any) -> bool:
    for key, value in node.items():
        if isinstance(value, dict):
            if _edit(value):
                return True
        elif isinstance(value, int | float) and not isinstance(value, bool):
            node[key] = value + 1
            return True
        elif isinstance(value, list):
            node[key] = [*value, 1]
            return True
    return False


def rope_theta(config: dict[str, Any]) -> None:
    """Another base, in the keys of both generations."""
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 10_000.0


@chosen
def regroup(config: dict[str, Any], width: str) -> None:
    """Twice as many heads of half the width: every shape stays."""
    config["num_attention_heads"] *= 2
    config["num_key_value_heads"] *= 2
    config[width] //= 2


def assign(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(values)


def weight_faults(file: str = WEIGHTS) -> list[Fault]:
    layer, attention = HF_LAYER.format(index=0), HF_LAYER.format(index=0) + "self_attn."
    changes: dict[str, Callable[[Tensors], None]] = {
        "flipped bit": flip_bit(layer + "mlp.up_proj.weight"),
        "flipped bit, embedding": flip_bit("model.embed_tokens.weight"),
        "gate and up": swap(layer + "mlp.gate_proj.", layer + "mlp.up_proj."),
        "q and k": swap(attention + "q_proj.", attention + "k_proj."),
        "k and v": swap(attention + "k_proj.", attention + "v_proj."),
        "layers permuted": swap(layer, HF_LAYER.format(index=1)),
        "norms swapped": swap(layer + "input_layernorm.", layer + "post_attention_layernorm."),
        "tensor missing": drop(layer + "self_attn.o_proj.weight"),
    }
    return [
        *faults_of(changes, tensors, file),
        Fault(name="truncated", plant=cut(file)),
        Fault(name="weights deleted", plant=delete(file)),
    ]


def config_faults(prefix: str = "") -> list[Fault]:
    changes: dict[str, Callable[[dict[str, Any]], None]] = {
        "rope": rope_theta,
        "end token": assign(eos_token_id=5),
        "eps": assign(rms_norm_eps=1e-5),
        "heads regrouped": regroup("head_dim"),
        "activation": assign(hidden_act="gelu"),
    }
    return [
        *faults_of(changes, fields, prefix + CONFIG),
        Fault(name="tokenizer", plant=fields(_swap_tokens, f"{prefix}tokenizer.json")),
        Fault(name="config deleted", plant=delete(prefix + CONFIG)),
    ]


def record_faults() -> list[Fault]:
    plain = {
        "record of bad types": fields(assign(details=[], files=3), ARTIFACT),
        "record of another schema": fields(assign(schema="compress-export/artifact/99"), ARTIFACT),
        "record deleted": delete(ARTIFACT),
    }
    return [
        Fault(name="edited card", plant=fields(edit_figure, ARTIFACT)),
        Fault(name="count edited", plant=fields(assign(num_parameters=7), ARTIFACT)),
        *(Fault(name=name, plant=plant, only_plain=True) for name, plant in plain.items()),
    ]


def sparsity_faults() -> list[Fault]:
    name = HF_LAYER.format(index=1) + "mlp.down_proj.weight"
    return [
        Fault(name="third non-zero", plant=tensors(third_nonzero(name))),
        Fault(name="mask", plant=tensors(flip_bit(name), "masks.safetensors")),
    ]


def plan_faults() -> list[Fault]:
    """Faults of a prune plan: another head kept than was."""

    def other_layers(plan: dict[str, Any]) -> None:
        plan["layers"] = "0 2" if plan["layers"] != "0 2" else "1-2"

    def other_neuron(plan: dict[str, Any]) -> None:
        lists = plan["kept"]["intermediate"]
        lists[0] = f"{lists[0]} {int(lists[0].replace('-', ' ').split()[-1]) + 1}"

    changes = {"plan, layers": other_layers, "plan, a neuron more": other_neuron}
    return faults_of(changes, fields, "prune_plan.json")


def rotation_faults() -> list[Fault]:
    """Faults of a rotation, also where the plan names the wrong one, and of what it makes of weights."""

    def entry(rotation: Tensors) -> None:
        rotation["components"][3, 5] += 0.01

    def reflected(rotation: Tensors) -> None:
        rotation["components"][:, 7] *= -1

    def named(change: Callable[[Tensors], None]) -> Plant:
        def plant(directory: Path) -> None:
            change_tensors(directory / ROTATION, change)
            digest = sha256_of_file(directory / ROTATION)
            change_json(directory / "prune_plan.json", lambda plan: plan.update(rotation=digest))

        return plant

    norm = HF_LAYER.format(index=1) + "input_layernorm.weight"
    weights: dict[str, Callable[[Tensors], None]] = {
        "norm constant": set_value(norm, lambda value: value * 1.1547),
        "flipped bit, head": flip_bit("lm_head.weight"),
    }
    return [
        *faults_of(weights, tensors),
        Fault(name="rotation, an entry", plant=tensors(entry, ROTATION)),
        Fault(name="rotation, an entry, named", plant=named(entry)),
        Fault(name="rotation, a component reflected, named", plant=named(reflected)),
        Fault(name="rotation deleted", plant=delete(ROTATION)),
    ]


def adapter_faults() -> list[Fault]:
    """Faults of a low-rank branch, as PEFT names its matrices."""
    prefix = "base_model.model." + HF_LAYER.format(index=0)
    gate, up = f"{prefix}mlp.gate_proj.", f"{prefix}mlp.up_proj."
    changes: dict[str, Callable[[Tensors], None]] = {
        "branch, flipped bit": flip_bit(gate + "lora_B.weight"),
        "branch, flipped bit of A": flip_bit(gate + "lora_A.weight"),
        "branch, gate and up": swap(gate + "lora_B", up + "lora_B"),
        "branch, layers permuted": swap(prefix, "base_model.model." + HF_LAYER.format(index=1)),
        "branch, doubled": set_value(up + "lora_B.weight", lambda value: value * 2),
        "branch, zero": set_value(up + "lora_B.weight", torch.zeros_like),
        "branch, matrix missing": drop(up + "lora_A.weight"),
    }

    def alpha(config: dict[str, Any]) -> None:
        config["alpha_pattern"] = {name: 2 * value for name, value in config["alpha_pattern"].items()}

    return [
        *faults_of(changes, tensors, ADAPTER),
        Fault(name="branch, scale doubled", plant=fields(alpha, ADAPTER_CONFIG)),
        Fault(name="branch, scale of another rule", plant=fields(assign(use_rslora=True), ADAPTER_CONFIG)),
        Fault(name="branch, truncated", plant=cut(ADAPTER)),
        Fault(name="branch, deleted", plant=delete("adapter")),
    ]


def fp8_faults(file: str) -> list[Fault]:
    name = HF_LAYER.format(index=0) + "mlp.up_proj."
    weight, inputs = f"{name}weight_scale", f"{name}input_scale"
    changes: dict[str, Callable[[Tensors], None]] = {
        "scale dropped": drop(weight),
        "scale doubled": set_value(weight, lambda value: value * 2),
        "scale 1": set_value(weight, torch.ones_like),
        "input scale doubled": set_value(inputs, lambda value: value * 2),
        "input scale 1": set_value(inputs, torch.ones_like),
        "FP8, flipped bit": flip_bit(f"{name}weight"),
    }
    return faults_of(changes, tensors, file)


def _swap_tokens(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
