"""Tiny random experts, saved by diffusers and transformers themselves in the layout of their large siblings."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from heads.experts.pipelines import bars

warnings.filterwarnings("ignore", category=FutureWarning)

WIDTH = 16
"""Of text encoders and cross-attention."""


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with no merges: one token per byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    symbols = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[], model_max_length=77)


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=24,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 8],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def unet(in_channels: int = 4, **options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        **{"cross_attention_dim": WIDTH, **options},
    )


def components(in_channels: int = 4, scheduler: str = "PNDMScheduler", **options: Any) -> dict[str, Any]:
    """What Stable-Diffusion-type pipelines are made of."""
    import diffusers

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    steps = {"skip_prk_steps": True, "steps_offset": 1} if scheduler == "PNDMScheduler" else {}
    noise = getattr(diffusers, scheduler)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **steps)
    return {
        "unet": unet(in_channels, **options),
        "vae": autoencoder(),
        "text_encoder": text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": noise,
        "safety_checker": None,
        "feature_extractor": None,
    }


def save_pipeline(directory: Path, name: str, **options: Any) -> Path:
    """A pipeline of diffusers' class ``name``, written to a directory; ``options`` are its UNet's."""
    import diffusers

    if name in OTHERS:
        with bars(False):
            OTHERS[name]().save_pretrained(directory)
        return directory
    gligen = "GLIGEN" in name
    parts = components(in_channels(name), **({"attention_type": "gated"} if gligen else {}), **options)
    extra = {} if gligen else {"image_encoder": None}
    pipeline = getattr(diffusers, name)(**parts, **extra, requires_safety_checker=False)
    with bars(False):
        pipeline.save_pretrained(directory)
    return directory


def in_channels(name: str) -> int:
    """Of the UNet: noise, and the source or the masked source and its mask."""
    return 8 if "Pix2Pix" in name else 9 if "Inpaint" in name else 4


SOURCE = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False)


def _hifigan(mels: int = 8) -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    sizes: dict[str, Any] = {
        "upsample_initial_channel": 8,
        "upsample_rates": [2, 2],
        "upsample_kernel_sizes": [4, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    }
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(model_in_dim=mels, sampling_rate=8000, normalize_before=False, **sizes)
    )


def audioldm() -> Any:
    from diffusers import AudioLDMPipeline, AutoencoderKL
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    text = ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=WIDTH,
        max_position_embeddings=130,
        pad_token_id=1,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=[8, 8],
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    embedded = {"projection_class_embeddings_input_dim": WIDTH, "class_embeddings_concat": True}
    denoiser = unet(class_embed_type="simple_projection", cross_attention_dim=(8, 16), **embedded)
    return AudioLDMPipeline(
        unet=denoiser,
        vae=autoencoder,
        text_encoder=ClapTextModelWithProjection(text),
        tokenizer=tokenizer,
        vocoder=_hifigan(),
        scheduler=_ddim(),
    )


def text_to_video() -> Any:
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

    parts = components(scheduler="DDIMScheduler")
    denoiser = UNet3DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    return TextToVideoSDPipeline(unet=denoiser, **{name: parts[name] for name in names})


def animatediff() -> Any:
    from diffusers import AnimateDiffPipeline, MotionAdapter

    parts = components(scheduler="DDIMScheduler")
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "feature_extractor")
    return AnimateDiffPipeline(motion_adapter=adapter, image_encoder=None, **{name: parts[name] for name in names})


OTHERS = {"AudioLDMPipeline": audioldm, "TextToVideoSDPipeline": text_to_video, "AnimateDiffPipeline": animatediff}


def save_speecht5(directory: Path) -> tuple[Path, Path, Path]:
    """A SpeechT5, its vocoder and two voices."""
    import sentencepiece
    from safetensors.torch import save_file
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5Tokenizer

    torch.manual_seed(0)
    directory.mkdir()
    model = io.BytesIO()
    options = {"vocab_size": 36, "model_type": "char", "minloglevel": 2}
    ids = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
    letters = iter(["the quick brown fox jumps over the lazy dog, how vexing: pack my box!"] * 9)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=letters, model_writer=model, **options, **ids)
    (directory / "spm_char.model").write_bytes(model.getvalue())
    tokenizer = SpeechT5Tokenizer(str(directory / "spm_char.model"))
    sizes = {
        "hidden_size": WIDTH,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": WIDTH,
        "decoder_ffn_dim": WIDTH,
        "speech_decoder_prenet_units": WIDTH,
        "speech_decoder_postnet_units": WIDTH,
        "speech_decoder_postnet_layers": 2,
        "num_mel_bins": 8,
        "speaker_embedding_dim": 8,
        "max_text_positions": 60,
    }
    speaker, voices = directory / "speecht5", directory / "voices.safetensors"
    with bars(False):
        SpeechT5ForTextToSpeech(SpeechT5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(speaker)
        tokenizer.save_pretrained(speaker)
        _hifigan().save_pretrained(directory / "hifigan")
    save_file({"ada": torch.randn(8), "bob": torch.randn(8)}, voices)
    return speaker, directory / "hifigan", voices


def save_vits(directory: Path) -> Path:
    """A VITS of two speakers."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(0)
    directory.mkdir()
    vocabulary = {letter: index for index, letter in enumerate(" abcdefghijklmnopqrstuvwxyz'-")}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    config = VitsConfig(
        vocab_size=len(vocabulary) + 5,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=WIDTH,
        flow_size=WIDTH,
        spectrogram_bins=9,
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1,
        duration_predictor_filter_channels=WIDTH,
        posterior_encoder_num_wavenet_layers=1,
        upsample_initial_channel=WIDTH,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        depth_separable_channels=2,
        num_speakers=2,
        speaker_embedding_size=8,
    )
    with bars(False):
        VitsModel(config).save_pretrained(directory)
        VitsTokenizer(str(directory / "vocab.json"), phonemize=False).save_pretrained(directory)
    return directory
