"""What the tables of chat quality say where there is nothing to test."""

from __future__ import annotations

import pytest

from compressor.evaluation.chat_record import ChatModel, ChatProtocol, ChatRecord, Replies, Turns
from compressor.evaluation.task_record import Paired
from compressor.pipeline.chat_table import chat_tables


@pytest.mark.parametrize(
    ("difference", "said"), [(0.0, "no conversation differs"), (-128.0, "all differ by as much")]
)
def test_differences_that_are_all_alike(difference: float, said: str) -> None:
    turns = Turns(perplexity=2.0, mean_nll=0.7, information=1.0, conversation_nll=(0.7, 0.7))
    replies = Replies(finished=0.0, degenerate=0.0, tokens=128.0, log_likelihood=-1.0, relevance=1.0)
    paired = Paired(
        task="replies",
        model="student",
        metric="tokens",
        num_items=2,
        difference=difference,
        low=difference,
        high=difference,
        p_value=None,
    )
    record = ChatRecord(
        protocol=ChatProtocol(
            split="all", template="", max_new_tokens=128, end_tokens=(1,), compute_dtype="float32"
        ),
        text={},
        conversation_tokens=(4, 4),
        models=dict.fromkeys(
            ("teacher", "student"), ChatModel(num_parameters=1, turns=turns, replies=replies)
        ),
        paired=(paired,),
    )
    _, (_, _, rows) = chat_tables(record)
    assert rows[0][-1] == said
