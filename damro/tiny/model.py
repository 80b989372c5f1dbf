"""The architectures of the tiny models and their processors: stock transformers classes, small numbers."""

from __future__ import annotations

from typing import Final

from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from damro.tiny.scenes import SIDE
from damro.tiny.tokenizer import CHAT_TEMPLATE, SPECIALS, build_tokenizer

FAMILIES: Final = ("llava", "llava_next", "instructblip")
"""The names of the shipped checkpoints."""
PATCH: Final = 12
GRID: Final = SIDE // PATCH
"""Patches a side: 8."""
QUERIES: Final = 16
"""Query tokens of the Q-Former."""
PINPOINTS: Final = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
"""Heights and widths LLaVA-NeXT may cut into tiles."""

_MEAN = _STD = [0.5, 0.5, 0.5]
_PAD, _BOS, _EOS, _, IMAGE_ID = range(len(SPECIALS))


def vision_config(hidden: int = 160, layers: int = 6) -> CLIPVisionConfig:
    """The ViT of the LLaVA models.

    Args:
        hidden: width; a multiple of 40.
        layers: depth. The language model sees the output of the last but one.
    """
    return CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 40,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=hidden,
    )


def text_config(hidden: int = 192, layers: int = 4) -> LlamaConfig:
    """The language model of all three.

    Args:
        hidden: width; a multiple of 32.
        layers: depth.
    """
    return LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=_PAD,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )


def build_model(
    family: str, vision: CLIPVisionConfig | None = None, text: LlamaConfig | None = None
) -> PreTrainedModel:
    """Builds an untrained model.

    Args:
        family: "llava", "llava_next" or "instructblip".
        vision: the ViT; `vision_config()` if not given.
        text: the language model; `text_config()` if not given.

    Returns:
        The model in float32, with its generation settings (greedy).

    Raises:
        ValueError: the family is unknown.
    """
    vision, text = vision or vision_config(), text or text_config()
    model: PreTrainedModel
    if family == "llava":
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision,
                text_config=text,
                image_token_index=IMAGE_ID,
                image_seq_length=GRID * GRID,
                vision_feature_layer=-2,
                vision_feature_select_strategy="default",
                tie_word_embeddings=True,
            )
        )
    elif family == "llava_next":
        model = LlavaNextForConditionalGeneration(
            LlavaNextConfig(
                vision_config=vision,
                text_config=text,
                image_token_index=IMAGE_ID,
                image_grid_pinpoints=PINPOINTS,
                image_seq_length=GRID * GRID,
                vision_feature_layer=-2,
                vision_feature_select_strategy="default",
                tie_word_embeddings=True,
            )
        )
    elif family == "instructblip":
        model = InstructBlipForConditionalGeneration(_instructblip_config(vision, text))
    else:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}; choose one of them")
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=_PAD, bos_token_id=_BOS, eos_token_id=_EOS, do_sample=False, max_new_tokens=64
    )
    return model


def _instructblip_config(vision: CLIPVisionConfig, text: LlamaConfig) -> InstructBlipConfig:
    """The same ViT in InstructBLIP's form, and a Q-Former of three layers, two of which look at the image."""
    hidden = vision.hidden_size
    return InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=hidden,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            image_size=SIDE,
            patch_size=PATCH,
            hidden_act=vision.hidden_act,
            layer_norm_eps=vision.layer_norm_eps,
        ).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=text.vocab_size,
            hidden_size=hidden,
            num_hidden_layers=3,
            num_attention_heads=vision.num_attention_heads,
            intermediate_size=2 * hidden,
            encoder_hidden_size=hidden,
            cross_attention_frequency=2,
            max_position_embeddings=128,
            pad_token_id=_PAD,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE_ID,
    )


def build_processor(family: str) -> ProcessorMixin:
    r"""Builds the processor of a family: word-level tokenizer, Pillow image processor, chat template.

    Args:
        family: "llava", "llava_next" or "instructblip".

    Returns:
        The processor. InstructBLIP's has no chat template: its prompt is the bare instruction.

    Raises:
        ValueError: the family is unknown.

    Example:
        >>> processor = build_processor("llava")
        >>> talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]}]
        >>> processor.apply_chat_template(talk, add_generation_prompt=True)
        'USER: <image>\nIs there a cat? ASSISTANT:'
    """
    tokenizer = build_tokenizer()
    if family == "llava":
        return LlavaProcessor(  # type: ignore[no-untyped-call]
            image_processor=CLIPImageProcessorPil(
                size={"shortest_edge": SIDE},
                crop_size={"height": SIDE, "width": SIDE},
                image_mean=_MEAN,
                image_std=_STD,
            ),
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
    if family == "llava_next":
        return LlavaNextProcessor(  # type: ignore[no-untyped-call]
            image_processor=LlavaNextImageProcessorPil(
                size={"shortest_edge": SIDE},
                crop_size={"height": SIDE, "width": SIDE},
                image_grid_pinpoints=PINPOINTS,
                image_mean=_MEAN,
                image_std=_STD,
            ),
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
    if family == "instructblip":
        return InstructBlipProcessor(  # type: ignore[no-untyped-call]
            image_processor=BlipImageProcessorPil(
                size={"height": SIDE, "width": SIDE}, image_mean=_MEAN, image_std=_STD
            ),
            tokenizer=build_tokenizer(image_token=False),
            qformer_tokenizer=build_tokenizer(image_token=False),
            num_query_tokens=QUERIES,
        )
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}; choose one of them")
