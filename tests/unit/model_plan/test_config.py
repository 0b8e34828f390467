"""config.json of every family, read as transformers reads it; and what is wrong with it, by file and key."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.model_plan import (
    ModelError,
    decode_model_config,
    encode_model_config,
    read_model_config,
)
from tests.checkpoints import FAMILIES, Checkpoints

from .configs import LLAMA, record, records, write_config

_QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
_QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
_MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def _reference(directory: Path) -> Any:
    return importlib.import_module("transformers").AutoConfig.from_pretrained(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_what_transformers_wrote(checkpoints: Checkpoints, family: str) -> None:
    directory = checkpoints(family, dtype="bfloat16", tie_word_embeddings=True)
    config, reference = read_model_config(directory), _reference(directory)
    assert config.family == family
    assert config.architecture == reference.architectures[0]
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (331, 64, 100)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 8, 4)
    assert config.head_dim == (8 if family == "qwen2" else 16)
    assert config.tie_word_embeddings
    assert config.dtype == "bfloat16"
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert (config.rope_theta, config.rope_scaling) == (reference.rope_parameters["rope_theta"], None)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert config.attention_bias == (family == "qwen2")
    assert config.qk_norm == (family == "qwen3")


@pytest.mark.parametrize(
    ("values", "window", "layers"),
    [
        ({**LLAMA, "sliding_window": 8}, None, [False, False]),  # ignored by transformers' Llama
        (_MISTRAL, 4096, [True, True]),
        ({**_MISTRAL, "sliding_window": None}, None, [False, False]),
        ({**_MISTRAL, "sliding_window": 7}, 7, [True, True]),
        ({**_QWEN2, "sliding_window": 7}, None, [False, False]),
        (
            {**_QWEN2, "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
            7,
            [False, True],
        ),
        ({**_QWEN2, "sliding_window": 7, "use_sliding_window": True}, None, [False, False]),
        (
            {
                **_QWEN3,
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            7,
            [True, False],
        ),
    ],
)
def test_slides_over_the_layers_that_transformers_slides_over(
    tmp_path: Path, values: dict[str, Any], window: int | None, layers: list[bool]
) -> None:
    directory = write_config(tmp_path, values)
    config, reference = read_model_config(directory), _reference(directory)
    assert (config.sliding_window, list(config.sliding_layers)) == (window, layers)
    assert [config.window_of(layer) for layer in range(2)] == [
        window if slides else None for slides in layers
    ]
    if values["model_type"] == "mistral":
        assert reference.sliding_window == window
    elif values["model_type"] != "llama":
        types = [kind == "sliding_attention" for kind in reference.layer_types]
        assert [slides and reference.sliding_window is not None for slides in types] == layers


@pytest.mark.parametrize(
    ("values", "head_dim", "kv_heads"),
    [
        ({**LLAMA, "num_key_value_heads": None}, 8, 8),
        ({key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}, 8, 8),
        ({**LLAMA, "head_dim": 32}, 32, 4),
        ({**LLAMA, "head_dim": None}, 8, 4),
        (_MISTRAL, 8, 4),
        (_QWEN2, 8, 4),
        (_QWEN3, 128, 4),
    ],
)
def test_takes_the_heads_that_transformers_takes(
    tmp_path: Path, values: dict[str, Any], head_dim: int, kv_heads: int
) -> None:
    directory = write_config(tmp_path, values)
    config, reference = read_model_config(directory), _reference(directory)
    assert (config.head_dim, config.num_kv_heads) == (head_dim, kv_heads)
    assert reference.num_key_value_heads == kv_heads
    assert (getattr(reference, "head_dim", None) or 64 // 8) == head_dim


def test_the_biases_are_those_of_the_family(tmp_path: Path) -> None:
    def biases(values: dict[str, Any]) -> tuple[bool, bool, bool]:
        config = read_model_config(
            write_config(tmp_path, {**values, "attention_bias": True, "mlp_bias": True})
        )
        return config.attention_bias, config.output_bias, config.mlp_bias

    assert biases(LLAMA) == (True, True, True)
    assert biases(_MISTRAL) == (False, False, False)
    assert biases(_QWEN2) == (True, False, False)
    assert biases(_QWEN3) == (True, True, False)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 5}, None, (5,)),
        ({"eos_token_id": [5, 6]}, None, (5, 6)),
        ({"eos_token_id": None}, None, ()),
        ({"eos_token_id": 5}, {"eos_token_id": [6, 7]}, (6, 7, 5)),
        ({"eos_token_id": 5}, {"eos_token_id": 5}, (5,)),
        ({"eos_token_id": 5}, {"temperature": 0.5}, (5,)),
    ],
)
def test_any_end_of_either_file_ends_a_sequence(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    write_config(tmp_path, {**LLAMA, **config})
    if generation is not None:
        write_config(tmp_path, generation, "generation_config.json")
    assert read_model_config(tmp_path).eos_token_ids == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float32"}, "float32"),
        ({"dtype": "float32"}, "float32"),  # the newer key wins
        ({"torch_dtype": None}, "float32"),
    ],
)
def test_knows_the_dtype_by_its_old_and_its_new_key(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    assert read_model_config(write_config(tmp_path, {**LLAMA, **change})).dtype == expected


def test_without_a_dtype_the_weights_tell(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("llama", dtype="float16")
    values = json.loads((source / "config.json").read_text())
    del values["dtype"]
    write_config(tmp_path, values)
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    assert read_model_config(tmp_path).dtype == "float16"


def test_a_model_type_alone_names_the_architecture(tmp_path: Path) -> None:
    directory = write_config(tmp_path, {**_QWEN3, "architectures": None})
    assert read_model_config(directory).architecture == "Qwen3ForCausalLM"


_WITHOUT = {key: {k: v for k, v in LLAMA.items() if k != key} for key in LLAMA}


@pytest.mark.parametrize(
    ("values", "key", "says"),
    [
        *((_WITHOUT[key], key, "is missing") for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "max_position_embeddings",
        )),
        ({**LLAMA, "vocab_size": "320"}, "vocab_size", "must be a whole number, is a string ('320')"),
        ({**LLAMA, "vocab_size": True}, "vocab_size", "must be a whole number, is a boolean (True)"),
        ({**LLAMA, "vocab_size": 320.5}, "vocab_size", "must be a whole number"),
        ({**LLAMA, "hidden_size": 0}, "hidden_size", "must be between 1 and"),
        ({**LLAMA, "num_hidden_layers": -3}, "num_hidden_layers", "must be between 1 and"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "num_hidden_layers", "must be between 1 and 10000"),
        ({**LLAMA, "rms_norm_eps": "small"}, "rms_norm_eps", "must be a number"),
        ({**LLAMA, "rms_norm_eps": -1e-6}, "rms_norm_eps", "must be a finite number above 0"),
        ({**LLAMA, "rope_theta": 10**400}, "rope_theta", "must be a finite number"),
        ({**LLAMA, "rope_theta": float("nan")}, "rope_theta", "must be a finite number"),
        ({**LLAMA, "tie_word_embeddings": "no"}, "tie_word_embeddings", "must be true or false"),
        ({**LLAMA, "num_key_value_heads": 3}, "num_key_value_heads", "does not divide num_attention_heads"),
        ({**_QWEN2, "num_attention_heads": 7, "num_key_value_heads": 7}, "hidden_size", "add head_dim"),
        ({**LLAMA, "head_dim": 5}, "head_dim", "must be even"),
        ({**LLAMA, "architectures": ["GemmaForCausalLM"]}, "architectures", "supported are LlamaFor"),
        ({**LLAMA, "architectures": "LlamaForCausalLM"}, "architectures", "must be a list of strings"),
        ({**LLAMA, "architectures": [], "model_type": "gpt2"}, "architectures", "names gpt2"),
        ({**LLAMA, "architectures": [], "model_type": 3}, "model_type", "must be a string"),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act", "'gelu' is not supported; supported is 'silu'"),
        ({**LLAMA, "torch_dtype": "float8_e4m3fn"}, "torch_dtype", "supported are float32, bfloat16"),
        ({**LLAMA, "eos_token_id": "</s>"}, "eos_token_id", "must be a token id or a list of token ids"),
        ({**LLAMA, "eos_token_id": [1, -1]}, "eos_token_id", "must be a token id or a list of token ids"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantization_config", "use the unquantized one"),
        ({**_QWEN2, "layer_types": ["full_attention"]}, "layer_types", "has 1 entries for num_hidden"),
        ({**_QWEN2, "layer_types": ["mamba", "mamba"]}, "layer_types", "'mamba' is not supported"),
        ({**_QWEN2, "layer_types": ["sliding_attention"] * 2}, "layer_types", "use_sliding_window"),
        (
            {key: value for key, value in _QWEN2.items() if key != "num_key_value_heads"},
            "num_key_value_heads",
            "is missing; add it",
        ),
    ],
)  # fmt: skip
def test_names_the_file_the_key_and_the_problem(
    tmp_path: Path, values: dict[str, Any], key: str, says: str
) -> None:
    with pytest.raises(ModelError) as error:
        read_model_config(write_config(tmp_path, values))
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {key}: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON: Expecting property name enclosed in double quotes at line 1"),
        ("[1]", "must hold a JSON object, holds a list ([1])"),
        ("null", "must hold a JSON object, holds null"),
        ('{"a":' * 100_000, "not valid JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_names_a_file_that_is_no_json_object(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json: ") as error:
        read_model_config(write_config(tmp_path, text))
    assert says in str(error.value)


def test_names_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file; give the directory"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match=r"config\.json: not UTF-8 text"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config\.json: can't be read: Is a directory"):
        read_model_config(tmp_path)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert read_model_config(tmp_path).vocab_size == 320


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    key=st.sampled_from([*LLAMA, "head_dim", "rope_scaling", "rope_parameters", "layer_types"]), value=_JSON
)
def test_whatever_a_key_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any-value"
    write_config(directory, {**LLAMA, key: value})
    with contextlib.suppress(ModelError):
        config = read_model_config(directory)
        assert config.num_heads % config.num_kv_heads == 0


@given(records())
def test_travels_to_another_host_as_text(config: Any) -> None:
    assert decode_model_config(encode_model_config(config)) == config


def test_text_of_another_release_is_refused() -> None:
    text = encode_model_config(record()).replace('"vocab_size"', '"words"')
    with pytest.raises(ModelError, match="use the same release on all hosts"):
        decode_model_config(text)
    with pytest.raises(ModelError, match="use the same release on all hosts"):
        decode_model_config("{")
