"""What a request may hold: the one table of parameters, told apart by what the server does with each.

`used`: it works. `hint`: accepted, since the answer is the same with and without it. `refused`: it would change the
answer in a way that is not implemented, so it is refused by name, unless its value asks for nothing. What no entry
names is unknown: it is ignored with a warning, or refused by a strict server.

A used parameter has a field of the same name in `requests`, whose classes name their `place` here. After a change,
`docs/write_parameters.py` writes the page of the documentation.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ...configs.options import OPTIONS

Kind = Literal["used", "hint", "refused"]
WARNING_HEADER = "X-Phi3-ONNX-Warning"
_LONGEST_NAME = 64
_MOST_NAMES = 16


@dataclass(frozen=True)
class Parameter:
    """One parameter of one place."""

    name: str
    kind: Kind
    note: str
    """What it does, what it hints at, or why it is refused."""
    neutral: tuple[Any, ...] = ()
    """Values that ask for nothing, and count as not given. null always does."""
    same_as: str = ""
    """The parameter that it is another name of."""

    def asks_for_nothing(self, value: Any) -> bool:
        """Whether a value is one of the neutral ones."""
        # True == 1 in Python, not in JSON; 0 and 0.0 are one number in both.
        return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in self.neutral)


@dataclass
class Notes:
    """What was found in one request besides the parameters that are used."""

    strict: bool = False
    """Whether unknown names are refused."""
    hints: set[str] = field(default_factory=set)
    unknown: dict[str, None] = field(default_factory=dict)
    """In the order in which they were found."""
    remarks: list[str] = field(default_factory=list)
    """Further things to warn of."""

    @property
    def warning(self) -> str:
        """What the client is warned of, as a value of `WARNING_HEADER`; empty where there is nothing."""
        parts = list(self.remarks)
        if self.unknown:
            shown = [_printable(name) for name in list(self.unknown)[:_MOST_NAMES]]
            more = len(self.unknown) - len(shown)
            parts.append(f"unknown and ignored: {', '.join(shown)}" + (f" and {more} more" if more else ""))
        return "; ".join(parts)


def _printable(name: str) -> str:
    """Return a client's word in characters that a header may hold."""
    short = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
    return json.dumps(short)[1:-1].replace("\x7f", "\\u007f")


def quoted(name: str) -> str:
    """Return a client's word in quotes, short, in characters that a header may hold."""
    return f"'{_printable(name)}'"


class OnceAClient:
    """Remembers which hints of which clients were logged; the latest ones, so that many clients take no memory."""

    def __init__(self, most: int = 4096) -> None:
        """Begin with none; `most` is how many are remembered."""
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._most = most

    def new(self, client: str, hints: Iterable[str]) -> list[str]:
        """Return those of the hints that this client did not send before."""
        found = [hint for hint in sorted(hints) if (client, hint) not in self._seen]
        for hint in found:
            self._seen[client, hint] = None
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return found


def used(*neutral: Any, **notes: str) -> Iterator[Parameter]:
    """Yield parameters that work, each with what it does."""
    for name, note in notes.items():
        yield Parameter(name, "used", note, neutral)


def same(name: str, others: str, *neutral: Any) -> Iterator[Parameter]:
    """Yield other names of a parameter, parted by spaces."""
    for other in others.split():
        yield Parameter(other, "used", f"The same as {name}.", neutral, name)


def hints(note: str, names: str) -> Iterator[Parameter]:
    """Yield hints, with why the answer is the same without them; the names are parted by spaces."""
    for name in names.split():
        yield Parameter(name, "hint", note)


def refused(note: str, names: str, *neutral: Any) -> Iterator[Parameter]:
    """Yield refused parameters, with why, and the values that ask for nothing; the names are parted by spaces."""
    for name in names.split():
        yield Parameter(name, "refused", note, neutral)


def table_of(*groups: Iterable[Parameter]) -> Mapping[str, Parameter]:
    """Return the parameters of one place by name."""
    entries = [entry for group in groups for entry in group]
    table = {entry.name: entry for entry in entries}
    assert len(table) == len(entries), "a name is in the table twice"
    return MappingProxyType(table)


def option_parameters(**neutral: tuple[Any, ...]) -> Iterator[Parameter]:
    """Yield the options of an answer and their other names, with the values that ask for nothing in a protocol."""
    for option in OPTIONS.values():
        yield Parameter(option.name, "used", option.help, neutral.get(option.name, ()))
        yield from same(option.name, " ".join(option.spellings))


# Some clients send all of their settings, whether they hold anything or not.
_NO_FORM = ("", {}, [])
_BOTH = (
    *option_parameters(max_tokens=(-1,)),  # how some clients write "no limit"
    *used(
        model="The model's name; where one package is served, any other name is answered with a warning.",
        stream="Whether to send the answer piece by piece.",
        stream_options="What a stream holds besides the answer.",
        n="How many answers to a prompt; a seed counts up with each.",
        user="Who asks: where requests wait, the users of one client take turns.",
        safety_identifier="Who asks, where `user` is not given.",
    ),
    Parameter("best_of", "refused", "answers are not ranked; use n", (1,)),
    *hints("It says who asks, or where to bill and log it.", "metadata request_id"),
    *hints(
        "Caches of prompts work by themselves.",
        "prompt_cache_key prompt_cache_retention prompt_cache_options cache_prompt cache_salt id_slot slot_id",
    ),
    *hints("Answers are not stored.", "store"),
    *hints("There is one class of service.", "service_tier priority provider route transforms plugins models"),
    *hints("The model is loaded as long as the server runs.", "keep_alive ttl num_ctx num_keep"),
    *hints("The answer is the same without it; it could only be faster.", "prediction draft_model"),
    *hints("The usage and the timings are given as they are.", "usage timings_per_token return_progress"),
    *hints("It belongs to a system of the sender's that is not here.", "kv_transfer_params vllm_xargs"),
    *hints("llguidance is what compiles guidance.", "guided_decoding_backend"),
    *hints(
        "It only matters beside a parameter that is refused.",
        "mirostat_tau mirostat_eta dynatemp_exponent xtc_threshold dry_base dry_allowed_length dry_penalty_last_n "
        "dry_sequence_breakers spaces_between_special_tokens",
    ),
    *refused("not implemented; use temperature, top_p, top_k or min_p", "mirostat dynatemp_range", 0),
    *refused("not implemented; use temperature, top_p, top_k or min_p", "xtc_probability top_a", 0),
    *refused("not implemented; use temperature, top_p, top_k or min_p", "tfs_z", 1),
    *refused("not implemented; use temperature, top_p, top_k or min_p", "top_n_sigma", -1),
    *hints("The steps of sampling have one order.", "samplers sampler_seq"),
    *refused("not implemented; use repetition_penalty or frequency_penalty", "dry_multiplier", 0),
    *hints("The penalties, where they are asked for, count the whole text.", "repeat_last_n"),
    *refused("there is no beam search", "use_beam_search", False),
    *refused("there is no beam search", "length_penalty", 1),
    *refused("there is no beam search", "early_stopping", False),
    *refused("not implemented; use stop", "stop_token_ids bad_words", []),
    *refused("not implemented; use logit_bias or guidance", "allowed_token_ids logits_processors", []),
    *refused("the stop text is left out of answers always", "include_stop_str_in_output", False),
    *refused("special tokens are left out of answers always", "skip_special_tokens", True),
    *refused("a prompt is not cut; shorten it", "truncate_prompt_tokens"),
    *refused("log probabilities are given for the answer alone", "prompt_logprobs", 0),
    *refused("log probabilities are given with logprobs", "n_probs", 0),
    *refused("log probabilities are the model's own", "post_sampling_probs", False),
    *refused("tokens are given as texts", "return_tokens_as_token_ids return_token_ids", False),
    *refused("adapters are not chosen in a request", "lora", []),
    *used(response_format="`text`, `json_object`, or `json_schema` with a schema."),
    *used(
        *_NO_FORM,
        json_schema="A JSON schema that the answer must follow, as an object or as text; an answer has one form.",
        regex="A regular expression that the answer must match.",
        grammar="A grammar that the answer must follow, in GBNF or in llguidance's Lark dialect.",
        guided_choice="Texts of which the answer must be one.",
        structured_outputs="One of these forms, under vLLM's names.",
    ),
    *same("json_schema", "guided_json", *_NO_FORM),
    *same("regex", "guided_regex", *_NO_FORM),
    *same("grammar", "guided_grammar ebnf", *_NO_FORM),
    *refused("white space is free where a schema's x-guidance says so", "guided_whitespace_pattern"),
    *refused("not implemented", "structural_tag"),
)

Places = Mapping[str, Mapping[str, Parameter]]
PLACES: Places = MappingProxyType(
    {
        "chat": table_of(
            _BOTH,
            used(
                messages="The conversation, oldest message first.",
                max_completion_tokens="The same as max_tokens.",
                logprobs="Whether to give the log probability of each token.",
                top_logprobs="How many of the most likely tokens to give at each place, 0 to 20.",
                tool_choice="`none`, `auto`, `required`, or a function by name.",
                parallel_tool_calls="Whether an answer may hold several calls: by default, unless one has to come.",
                chat_template_kwargs="Further names that the chat template reads.",
                add_generation_prompt="Whether the answer is a new message; else the prompt ends with the last one.",
                continue_final_message="Whether the answer continues the last message; it does so by itself where that "
                "is the assistant's, unless this or add_generation_prompt is given.",
            ),
            [Parameter("tools", "used", "Functions that the model may call.", ([],))],
            hints(
                "The model does not reason apart from its answer.",
                "reasoning reasoning_effort include_reasoning reasoning_format reasoning_split thinking "
                "thinking_budget thinking_token_budget enable_thinking",
            ),
            hints("How long an answer is, is the model's matter.", "verbosity"),
            hints("The model has no images or sounds.", "mm_processor_kwargs"),
            refused("the model answers in text alone", "modalities", ["text"]),
            refused("the model answers in text alone", "audio"),
            refused("the model does not search the web", "web_search_options search_parameters"),
            refused("not implemented; put them into a message", "documents", []),
            refused("it was replaced by tools", "functions", []),
            refused("it was replaced by tool_choice", "function_call", "none"),
            refused("the package's own template is used always", "chat_template"),
            refused("the chat template puts special tokens in", "add_special_tokens", False),
            refused("an answer to a chat never holds its prompt", "echo", False),
        ),
        "completions": table_of(
            _BOTH,
            used(
                prompt="A text or token ids, or up to 64 of them.",
                echo="Whether the answer begins with the prompt, with its log probabilities where they are asked for; "
                "with `max_tokens: 0` that is all of it.",
            ),
            [
                Parameter(
                    "logprobs",
                    "used",
                    "Give the log probability of each token, and of this many most likely ones, 0 to 20.",
                    (False,),
                )
            ],
            refused("the model writes what comes next, not what stands between", "suffix", ""),
            refused("the tokenizer's special tokens are put in always", "add_special_tokens", True),
            refused("/v1/completions knows no tools; use /v1/chat/completions", "tools", []),
        ),
        "stream_options": table_of(
            used(
                include_usage="End the stream with the count of its tokens.",
                continuous_usage_stats="Give the count of the tokens so far with each piece.",
            ),
            hints("It pads events against eavesdroppers; the answer is the same.", "include_obfuscation"),
        ),
        "structured_outputs": table_of(
            used(
                *_NO_FORM,
                json="As json_schema.",
                regex="As regex.",
                choice="As guided_choice.",
                grammar="As grammar.",
                json_object="Whether the answer must be a JSON object.",
            ),
            hints(
                "llguidance is what compiles guidance, and leaves no white space free.",
                "disable_fallback disable_any_whitespace",
            ),
            hints(
                "An object holds the keys that its schema lists, and others where `additionalProperties` says so.",
                "disable_additional_properties",
            ),
            refused("white space is free where a schema's x-guidance says so", "whitespace_pattern"),
            refused("not implemented", "structural_tag"),
        ),
        "tokenize": table_of(
            used(model="The model's name.", prompt="The text."),
            refused("not implemented; render the chat template and send the prompt", "messages"),
            refused("special tokens are put in as the tokenizer does it", "add_special_tokens", True),
            refused("the answer holds token ids", "return_token_strs", False),
        ),
        "detokenize": table_of(used(model="The model's name.", tokens="The token ids.")),
        "messages[]": table_of(
            used(
                role="`system`, `developer` (the same), `user`, `assistant`, or `tool`.",
                content="The text, as one or in parts.",
                name="Who speaks, where the chat template reads it.",
                tool_calls="An assistant's calls.",
                tool_call_id="The call that a `tool` message answers.",
            ),
            hints(
                "It came with an earlier answer of some server, and is not part of its text.",
                "refusal annotations reasoning_content reasoning reasoning_details thinking_blocks "
                "provider_specific_fields parsed images",
            ),
            hints("Caches of prompts work by themselves.", "cache_control"),
            hints("A last message of the assistant is continued by itself.", "prefix prefill partial"),
            refused("the model reads text alone", "audio"),
            refused("it was replaced by tool_calls", "function_call"),
        ),
        "messages[].content[]": table_of(
            used(type="`text`.", text="The text."),
            hints("Caches of prompts work by themselves.", "cache_control"),
            hints("It came with an earlier answer of some server.", "annotations id"),
        ),
        "messages[].tool_calls[]": table_of(
            used(id="The call's id.", type="`function`.", function="The function and its arguments."),
            hints("It says where in a stream the call was.", "index"),
            hints("It came with an earlier answer of some server.", "provider_specific_fields extra_content"),
        ),
        "messages[].tool_calls[].function": table_of(
            used(name="The function's name.", arguments="Its arguments, as JSON in a text."),
            hints("It came with an earlier answer of some server.", "parsed_arguments provider_specific_fields"),
        ),
        "tools[]": table_of(
            used(type="`function`.", function="The function."),
            hints("Caches of prompts work by themselves.", "cache_control"),
        ),
        "tools[].function": table_of(
            used(
                name="Its name: letters, digits, `_`, `.`, `-`.",
                description="What it does, for the model.",
                parameters="Its parameters, as a JSON schema.",
                strict="Whether the arguments must follow the schema.",
            ),
        ),
        "tool_choice": table_of(used(type="`function`.", function="Which one.")),
        "tool_choice.function": table_of(used(name="The function's name.")),
        "response_format": table_of(
            used(type="Which kind.", json_schema="The schema.", schema="A schema for `json_object`."),
        ),
        "response_format.json_schema": table_of(
            used(schema="The JSON schema that the answer must follow."),
            hints(
                "An answer follows the schema always; its name and description do not reach the model.",
                "name strict description",
            ),
        ),
    }
)
"""OpenAI's parameters by where they stand in the body: `_TOPS` are its top. Further protocols have tables of their own,
whose tops are paths of HTTP."""

_TOPS = frozenset({"chat", "completions", "tokenize", "detokenize"})


def path_of(place: str, name: str) -> str:
    """Return how a parameter is called in a warning."""
    return name if place in _TOPS or place.startswith("/") else f"{place}.{name}"


def told(schema: dict[str, Any], table: Mapping[str, Parameter]) -> None:
    """Put what a table says into the JSON schema of its place: all names, what they do, and null for not given."""
    own = dict(schema.setdefault("properties", {}))
    required = set(schema.get("required", ())) - {entry.same_as for entry in table.values()}
    for name, entry in table.items():
        if entry.kind == "hint":
            made: dict[str, Any] = {"description": f"A hint: {entry.note}"}
        elif entry.kind == "refused":
            made = {"description": f"Not supported: {entry.note}.", "enum": [None, *entry.neutral]}
        elif (entry.same_as or name) not in own:
            continue  # of another kind of message at this place
        elif name in required:
            made = {**own[name], "description": entry.note}
        else:
            # Values that ask for nothing may be others than those that ask for something.
            made = {"description": entry.note, "anyOf": [own[entry.same_as or name], {"enum": [None, *entry.neutral]}]}
        schema["properties"][name] = made
    schema["required"] = sorted(required)
