from __future__ import annotations

from bench.design.comparisons import arm_name, fair_comparisons, parts_of_arm, split_precision


def test_names_of_arms_come_apart_again() -> None:
    assert parts_of_arm(arm_name("smollm2-135m", "bf16+2:4")) == ("smollm2-135m", "bf16+2:4")
    assert split_precision("bf16+2:4") == ("bf16", "2:4")
    assert split_precision("fp8") == ("fp8", "")


def test_every_gain_has_a_baseline_of_its_own() -> None:
    arms = tuple(arm_name(model, name) for model in ("t", "s") for name in ("bf16", "fp8", "bf16+2:4"))
    assert set(fair_comparisons(arms)) == {
        # what pruning bought, in every precision
        ("t-bf16", "s-bf16"), ("t-fp8", "s-fp8"), ("t-bf16+2:4", "s-bf16+2:4"),
        # what FP8 bought, and 2:4 against its dense twin
        ("t-bf16", "t-fp8"), ("s-bf16", "s-fp8"), ("t-bf16", "t-bf16+2:4"), ("s-bf16", "s-bf16+2:4"),
        # the total
        ("t-bf16", "s-fp8"), ("t-bf16", "s-bf16+2:4"),
    }  # fmt: skip


def test_one_precision_needs_one_comparison_and_one_model_none_of_models() -> None:
    assert fair_comparisons(("t-fp32", "s-fp32")) == (("t-fp32", "s-fp32"),)
    assert fair_comparisons(("t-fp32", "t-int4")) == (("t-fp32", "t-int4"),)
    both = ("t-fp32", "t-int4", "s-fp32", "s-int4")
    assert fair_comparisons(both, which="same-precision") == (("t-fp32", "s-fp32"), ("t-int4", "s-int4"))


def test_arms_that_do_not_exist_are_not_compared() -> None:
    assert fair_comparisons(("t-fp32", "s-fp32", "s-int4")) == (
        ("t-fp32", "s-fp32"),
        ("s-fp32", "s-int4"),
        ("t-fp32", "s-int4"),
    )
