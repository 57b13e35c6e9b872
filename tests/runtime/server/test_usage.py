"""The count of tokens of a request: each prompt once, and what was run ahead of the answers."""

from phi3_onnx.runtime.server.messages import Finished
from phi3_onnx.runtime.server.replies import usage


def finished(choice: int, *, cached: int, drafted: int, accepted: int) -> Finished:
    return Finished(
        id=1,
        choice=choice,
        text="",
        logprobs=(),
        reason="stop",
        prompt_tokens=10,
        completion_tokens=5,
        cached_tokens=cached,
        prefill_seconds=0.1,
        decode_seconds=0.1,
        last=choice == 1,
        drafted_tokens=drafted,
        accepted_tokens=accepted,
    )


def test_what_ran_ahead_is_counted_beside_the_answers_tokens() -> None:
    answers = [finished(0, cached=3, drafted=8, accepted=6), finished(1, cached=9, drafted=4, accepted=0)]
    assert usage(10, answers, 1) == {
        "prompt_tokens": 10,
        "completion_tokens": 10,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 6},
    }
