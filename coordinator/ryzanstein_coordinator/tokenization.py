"""Text to tokens and back, by the model's own tokenizer.json, and its chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ryzanstein.model_plan import ModelError
from ryzanstein.wire import invalid_argument

from .chat_template import ChatTemplate, read_chat_template
from .detokenizer import Detokenizer, IncrementalDetokenizer, TokenPieces, WindowDetokenizer
from .token_text import DecoderRules, read_decoder

#: A normaliser may shorten text before it is split: full-width letters and mathematical alphabets of four
#: bytes become ASCII.
_NORMALISER_SHRINKS = 4

#: Ids that are decoded at start to see whether the rules read from the decoder are the whole truth.
_CHECKED_IDS = 512


class ModelTokenizer:
    """The tokenizer of one model. Immutable and safe to use from several threads at once.

    Encoding frees the interpreter's lock while it works.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        #: No text of more bytes than this per token can become so few tokens.
        self.longest_token_bytes = longest * (1 if tokenizer.normalizer is None else _NORMALISER_SHRINKS)
        self._pieces = self._read_pieces()

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows; the model's own vocabulary may be padded beyond."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. `add_special_tokens`: put around it what the model expects around a prompt.

        Raises INVALID_ARGUMENT for text that is not valid Unicode.
        """
        try:
            encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except TypeError:  # lone surrogates, which JSON can carry
            raise invalid_argument("the text holds half of a surrogate pair, which is no character") from None
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of all these tokens at once; ids that the tokenizer does not know stand for nothing."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def piece(self, token_id: int) -> str | bytes:
        """What one token stands for, special ones too; bytes, if it begins or ends within a character."""
        piece = None if self._pieces is None else self._pieces[token_id]
        return self.decode([token_id]) if piece is None else piece

    def token(self, token_id: int) -> str:
        """Its name in the vocabulary; empty if there is no such id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The messages in the model's own form; it holds the special tokens already.

        Raises INVALID_ARGUMENT if the model has no template or its template refuses the messages.
        """
        if self._chat_template is None:
            raise invalid_argument("this model has no chat template: send a text or token ids instead")
        return self._chat_template.render(messages, add_generation_prompt=add_generation_prompt, extra=extra)

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """For the tokens that follow `context`, without special tokens."""
        if self._pieces is not None:
            return IncrementalDetokenizer(self._pieces, context)
        return WindowDetokenizer(
            lambda ids: self.decode(ids, skip_special_tokens=True), context, self._special_ids
        )

    def _read_pieces(self) -> TokenPieces | None:
        decoder = self._tokenizer.decoder
        rules = None if decoder is None else read_decoder(decoder.__getstate__())
        if rules is None:
            return None
        pieces = TokenPieces(rules, self._tokenizer.id_to_token, self._special_ids)
        return pieces if self._agrees(rules) else None

    def _agrees(self, rules: DecoderRules) -> bool:
        """Whether token by token gives what the tokenizer gives at once, for tokens from all over the
        vocabulary.

        Runs of bytes that are no characters are left out: there the two may differ in how many U+FFFD they
        write.
        """
        pieces = TokenPieces(rules, self._tokenizer.id_to_token, self._special_ids)
        step = max(1, self.vocab_size // _CHECKED_IDS)
        ids = [token_id for token_id in range(0, self.vocab_size, step) if isinstance(pieces[token_id], str)]
        detokenizer = IncrementalDetokenizer(pieces)
        text = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
        return text == self.decode(ids, skip_special_tokens=True)


def read_tokenizer(directory: Path) -> ModelTokenizer:
    """The tokenizer and chat template of a model directory. Raises ModelError naming the file."""
    # It only parallelises over many texts at once, which this program never encodes, and its threads make
    # it warn on standard error whenever the process starts another.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file; a model needs its tokenizer in the format of the tokenizers library "
            "(transformers writes it with AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for a file that it can't read
        raise ModelError(f"{path}: not a tokenizer: {error}") from None
    return ModelTokenizer(tokenizer, read_chat_template(directory))
