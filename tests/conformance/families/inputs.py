"""Inputs for tiny models: guessed from the names in a forward's signature, not from the family.

A model gets a list of candidates, tried in order until one of them runs, because the layout of
pixels and audio frames is nowhere declared.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from tests.conformance.families.building import TinyModel
from tests.conformance.families.cache import CACHE_NAMES, cache_among, cache_in, cache_name
from tests.conformance.families.overrides import INPUTS, SUBMODULES
from tests.conformance.families.shrinking import WIDTH, attribute

BATCH, TOKENS, STEPS, PADDED = 2, 9, 2, 3
BOTH = (BATCH, TOKENS)
SEED = 7
TOKENS_FIRST = ("input_ids", "inputs_embeds", "decoder_input_ids")
"""What a decoder's tokens are called; the last where the encoder takes no tokens."""
Mark = Callable[[str, Tensor | None, int], None]
"""Told the kind, the 2-D mask and the number of cached tokens before every forward."""
Start = Callable[[nn.Module, Mark], None]


class Maker:
    """Random inputs of one model class, the same on every call."""

    def __init__(self, tiny: TinyModel, model: nn.Module) -> None:
        self.tiny, self.model = tiny, model
        self.config: Any = model.config
        self.part = _part(model)
        parameters = inspect.signature(inspect.unwrap(type(self.part).forward)).parameters
        self.names = set(parameters) - {"self"}
        self.required = {
            x
            for x, y in parameters.items()
            if y.default is inspect.Parameter.empty
            and y.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        } - {"self"}
        self.generator = torch.Generator().manual_seed(SEED)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def tokens(self, count: int = TOKENS, *more: int) -> Tensor:
        shape = (BATCH, count, *more)
        return torch.randint(12, 90, shape, generator=self.generator)

    def number(self, *names: str, default: int = 0) -> int:
        value = attribute(self.config, *names)
        return default if value is None else value

    @property
    def width(self) -> int:
        return self.number(*WIDTH, default=64)

    def text(self) -> Iterator[dict[str, Any]]:
        """Token ids (or embeddings), with what cross attention needs beside them."""
        extra: dict[str, Any] = {}
        crosses = getattr(self.config, "add_cross_attention", True)
        if "encoder_hidden_states" in self.names and crosses:
            extra["encoder_hidden_states"] = self.noise(BATCH, 7, self.width)
        if "decoder_input_ids" in self.names and "input_ids" in self.names:
            extra["decoder_input_ids"] = self.tokens()
        if "input_ids" in self.names:
            yield {"input_ids": self.tokens()} | extra
            for key in ("num_codebooks", "num_channels", "num_quantizers", "n_codebooks"):
                if books := self.number(key):
                    yield {"input_ids": self.tokens(TOKENS, books)} | extra
                    yield {"input_ids": self.tokens(TOKENS, books).transpose(1, 2)} | extra
        for name in ("inputs_embeds", "hidden_states"):
            if name in self.names:
                yield {name: self.noise(BATCH, TOKENS, self.width)} | extra

    def grids(self) -> Iterator[dict[str, Any]]:
        """Packed patches with the grid they come from: (frames, rows, columns) of patches."""
        name = next((x for x in ("grid_thw", "image_grid_thw") if x in self.names), None)
        if name is None:
            return
        grid = torch.tensor([[1, 4, 6], [1, 4, 4]])
        patch = self.number("patch_size", default=8)
        frames = self.number("temporal_patch_size", "patch_temporal", default=1)
        channels = self.number("in_channels", "num_channels", "in_chans", default=3)
        count = int(grid.prod(1).sum())
        main: str = next(x for x in ("pixel_values", "hidden_states", "x") if x in self.names)
        more: dict[str, Any] = {name: grid}
        if "merge_sizes" in self.names:
            more["merge_sizes"] = torch.tensor([2, 1])
        yield more | {main: self.noise(count, channels * frames * patch * patch)}
        yield more | {main: self.noise(count, channels, patch, patch)}
        yield more | {main: self.noise(1, count, channels, patch, patch)}
        yield more | {main: self.noise(1, count, channels * patch * patch)}

    def images(self) -> Iterator[dict[str, Any]]:
        patch = self.number("patch_size", default=8)
        size = self.number("image_size", default=4 * patch)
        channels = self.number("in_channels", "num_channels", "in_chans", default=3)
        if "pixel_values_videos" in self.names:
            frames = self.number("frames_per_clip", default=4)
            yield {"pixel_values_videos": self.noise(1, frames, channels, size, size)}
        for name in ("pixel_values", "hidden_states", "images"):
            if name not in self.names:
                continue
            yield {name: self.noise(BATCH, channels, size, size)}
            yield {name: self.noise(BATCH, channels, size, size)} | self.ids()
            yield {name: self.noise(1, BATCH, channels, size, size)}
            yield {name: self.noise(BATCH, 16, channels * patch * patch)}

    def ids(self) -> dict[str, Any]:
        return {"input_ids": self.tokens()} if "input_ids" in self.names else {}

    def audio(self) -> Iterator[dict[str, Any]]:
        bins = self.number(
            "feature_projection_input_dim",
            "num_mel_bins",
            "n_mels",
            "feature_size",
            "input_feat_per_channel",
            default=16,
        )
        for name in ("input_features", "audio_features", "features"):
            if name in self.names:
                yield {name: self.noise(BATCH, 64, bins)}
                yield {name: self.noise(BATCH, bins, 64)}
                mask = torch.ones(BATCH, 64, dtype=torch.bool)
                yield {name: self.noise(BATCH, 64, bins), "attention_mask": mask}
        for name in ("input_values", "audio_values", "audio"):
            if name in self.names:
                yield {name: self.noise(BATCH, 1, 1920)}
                yield {name: self.noise(BATCH, 1920)}
                yield {name: self.noise(BATCH, 1, 19200)}

    def candidates(self) -> Iterator[dict[str, Any]]:
        """Keyword arguments of the forward, the likeliest first."""
        own = INPUTS.get(self.tiny.model_class.__name__)
        if own is not None:
            yield own(self)
            return
        yield from self.grids()
        if self.model.main_input_name in ("pixel_values", "pixel_values_videos"):
            yield from self.images()
        yield from self.text()
        yield from self.images()
        yield from self.audio()


def starts(tiny: TinyModel, model: nn.Module) -> Iterator[Start]:
    """Ways of running the model, the likeliest first: each runs every forward of the model."""
    maker = Maker(tiny, model)
    for inputs in list(maker.candidates()):
        tokens = next((x for x in TOKENS_FIRST if x in inputs), None)
        name = cache_among(maker.names) if _decodes(model) else None
        if name is not None and tokens is not None and inputs[tokens].shape[0] == BATCH:
            yield _decoder(inputs, name, lambda: None)
            yield _decoder(inputs, name, lambda: DynamicCache(config=maker.config))
            yield _decoder(
                inputs, name, lambda: EncoderDecoderCache(DynamicCache(), DynamicCache())
            )
        yield _encoder(inputs)


CODECS = {"MimiModel": "decoder.decoder_transformer"}
CODECS["PocketTTSAudioTokenizerModel"] = CODECS["MimiModel"]
"""Models of sound, whose forward takes no mask of tokens; their decoder's stack, which does."""


def _codec(maker: Maker) -> Start:
    """The decoder's stack by itself: a prompt, steps on its cache, and a padded prompt."""
    path = CODECS[maker.tiny.model_class.__name__]
    stack = maker.model.get_submodule(path)
    name = cache_name(stack.forward)
    hidden = maker.noise(BATCH, TOKENS + STEPS, maker.width)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[1, :PADDED] = 0

    def start(model: nn.Module, mark: Mark) -> None:
        cache, past = DynamicCache(), 0
        for count in (TOKENS, *[1] * STEPS):
            mark("decode" if past else "prefill", None, past)
            stack(hidden[:, past : past + count], **{name: cache}, use_cache=True)
            past += count
        mark("padded", mask, 0)
        stack(hidden[:, :TOKENS], attention_mask=mask.clone())

    return start


def _decodes(model: nn.Module) -> bool:
    """Not an encoder that merely could be a decoder, under another config."""
    causal = any(getattr(x, "is_causal", False) for x in model.modules())
    return causal or getattr(model.config, "is_decoder", True)


def _part(model: nn.Module) -> nn.Module:
    """What of the model is run: all of it, but for those that `SUBMODULES` names."""
    return model.get_submodule(SUBMODULES.get(type(model).__name__, ""))


def _fresh(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copies, for models that add to their inputs in place."""
    return {x: y.clone() if isinstance(y, Tensor) else y for x, y in inputs.items()}


def paddings(tiny: TinyModel, model: nn.Module) -> Iterator[Start]:
    """The same with left padding in row 1, where the model takes tokens and a mask."""
    maker = Maker(tiny, model)
    if tiny.model_class.__name__ in CODECS:
        yield _codec(maker)
    for inputs in list(maker.candidates()):
        tokens = next((x for x in TOKENS_FIRST if x in inputs), None)
        decodes = tokens == "decoder_input_ids"
        name = "decoder_attention_mask" if decodes else "attention_mask"
        if tokens is None or name not in maker.names:
            continue
        mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
        mask[1, :PADDED] = 0
        if "position_ids" in maker.names:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            yield _padded(inputs | {"position_ids": positions}, name, mask)
        yield _padded(inputs, name, mask)
        if "use_cache" in maker.names:
            yield _padded(inputs | {"use_cache": False}, name, mask)


def _encoder(inputs: dict[str, Any]) -> Start:
    def start(model: nn.Module, mark: Mark) -> None:
        cache = next((inputs[name] for name in CACHE_NAMES if name in inputs), None)
        mark("encode", None, cache.get_seq_length() if cache is not None else 0)
        _part(model)(**_fresh(inputs))

    return start


def _padded(inputs: dict[str, Any], name: str, mask: Tensor) -> Start:
    """name: what the forward calls the mask."""

    def start(model: nn.Module, mark: Mark) -> None:
        mark("padded", mask, 0)
        _part(model)(**_fresh(inputs), **{name: mask.clone()})

    return start


def _decoder(inputs: dict[str, Any], name: str, empty: Callable[[], Any]) -> Start:
    """With the cache that the model makes itself where `empty` gives none; name: what the forward
    calls it."""
    along = {x: y for x, y in inputs.items() if tuple(getattr(y, "shape", ())[:2]) == BOTH}
    later = [{x: y[:, i : i + 1].flip(0) for x, y in along.items()} for i in range(STEPS)]

    def start(model: nn.Module, mark: Mark) -> None:
        mark("prefill", None, 0)
        cache = empty()
        output = _part(model)(**_fresh(inputs), **{name: cache}, use_cache=True)
        cache = cache_in(output) or cache
        if cache is None:
            raise ValueError("the model returned no cache")
        for count, step in enumerate(later):
            mark("decode", None, TOKENS + count)
            _part(model)(**_fresh(inputs | step), **{name: cache}, use_cache=True)

    return start
