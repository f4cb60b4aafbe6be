"""Fast tokenizers for the static text encoder: a word-piece vocabulary, lower case, a start token."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[START]")


def vocabulary_of(texts: Iterable[str], max_size: int = 4096, min_count: int = 1) -> list[str]:
    """The most frequent words of `texts` in lower case, and all single characters as continuations (`##x`)."""
    splitter, lower = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text)))
    letters = sorted({letter for word in words for letter in word})
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    frequent = [word for word, count in words.most_common() if count >= min_count and len(word) > 1]
    return [*pieces, *frequent][:max_size]


def build_text_tokenizer(
    vocabulary: Sequence[str], *, max_length: int = 16, kind: str = "wordpiece"
) -> PreTrainedTokenizerFast:
    """
    A tokenizer over `vocabulary`; ids 0, 1, 2 are padding, unknown, start. Every text begins with the start token, so
    that the empty one has a token too.

    Args:
        vocabulary: words, and word pieces that begin with "##" (kind "wordpiece").
        max_length: longest text in tokens, the start token included.
        kind: "wordpiece" or "word".

    Raises:
        ValueError: for another kind.
    """
    pieces = [*SPECIAL_TOKENS, *(piece for piece in dict.fromkeys(vocabulary) if piece not in SPECIAL_TOKENS)]
    ids = {piece: index for index, piece in enumerate(pieces)}
    if kind == "wordpiece":
        model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=64)
    elif kind == "word":
        model = models.WordLevel(ids, unk_token="[UNK]")
    else:
        raise ValueError(f'kind must be "wordpiece" or "word", got {kind!r}.')
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[START] $A", special_tokens=[("[START]", ids["[START]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[START]",
        model_max_length=max_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
