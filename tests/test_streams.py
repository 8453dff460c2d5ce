"""Which tokens a site sees, and which of them are padding: encoder, decoder, convolutions, image towers."""

from __future__ import annotations

import families
import pico
import pico_speech
import pytest
import torch

from compress.distill.activations import Tap, observe
from compress.padding import RealRows
from compress.sites import find_sites
from compress.streams import accepted, answer_stream, real_tokens, shortened, stream_of


def streams(model: torch.nn.Module) -> list[str]:
    return [stream_of(model, site.output) for site in find_sites(model)]


def test_each_site_has_its_stream() -> None:
    assert streams(pico_speech.whisper()) == ["main", "main", "decoder", "decoder"]
    assert streams(pico_speech.t5()) == ["main", "main", "decoder", "decoder"]
    assert streams(pico_speech.wav2vec2()) == ["main", "main"]
    assert streams(families.FAMILIES["clip"].make()) == ["images", "images", "main", "main"]
    assert streams(pico.llama()) == streams(pico.vit()) == ["main", "main"]
    assert (answer_stream(pico_speech.t5()), answer_stream(pico_speech.wav2vec2())) == ("decoder", "main")


def test_masks_of_encoder_and_decoder_are_told_apart() -> None:
    batch = {
        "input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "decoder_input_ids": torch.zeros(2, 3), "decoder_attention_mask": torch.tensor([[1, 0, 0], [1, 1, 0]]),
    }  # fmt: skip
    model = pico_speech.t5()
    assert real_tokens(model, batch, "main", 3).tolist() == [[True, True, False], [True, True, True]]
    assert real_tokens(model, batch, "decoder", 3).tolist() == [[True, False, False], [True, True, False]]
    assert real_tokens(model, batch, "images", 3) is None
    alone = {key: batch[key] for key in ("input_ids", "attention_mask")}  # the model shifts them for its decoder
    assert real_tokens(model, alone, "decoder", 3).tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_frames_follow_the_models_own_rule(family: str) -> None:
    model = getattr(pico_speech, family)()
    whole = 100 if family == "whisper" else 16_000
    mask = (torch.arange(whole) < torch.tensor([[whole], [whole // 2], [whole // 5]])).long()
    made = int(shortened(model, torch.tensor([whole]), whole)[0])
    real = real_tokens(model, {"attention_mask": mask}, "main", made)
    if family == "whisper":
        assert real.sum(1).tolist() == [50, 25, 10]
    else:
        wanted = model._get_feature_vector_attention_mask(made, mask)
        assert torch.equal(real, wanted)
    assert real[0].all()


def test_frames_behind_an_adapter_have_a_mask_too() -> None:
    settings = {**families._AUDIO, "add_adapter": True, "num_adapter_layers": 1, "output_hidden_size": 32}
    model = families.build("Wav2Vec2ForCTC", "Wav2Vec2Config", **settings)
    mask = (torch.arange(4000) < torch.tensor([[4000], [2000]])).long()
    values = torch.randn(2, 4000)
    logits = model(values, attention_mask=mask).logits
    with observe(model, [Tap(site, None) for site in find_sites(model)]) as traces:
        model(values, attention_mask=mask)
    before = next(iter(traces.values())).x[0].shape[1]
    assert logits.shape[1] < before
    for positions, adapter in ((before, False), (logits.shape[1], True)):
        wanted = model._get_feature_vector_attention_mask(positions, mask, add_adapter=adapter)
        assert torch.equal(real_tokens(model, {"attention_mask": mask}, "main", positions), wanted)


def test_a_mask_that_the_model_must_not_have_stays_behind() -> None:
    batch = {"input_values": torch.zeros(1, 4000), "attention_mask": torch.ones(1, 4000)}
    assert set(accepted(pico_speech.wav2vec2(norm="layer"), batch)) == {"input_values", "attention_mask"}
    assert set(accepted(pico_speech.wav2vec2(norm="group"), batch)) == {"input_values"}
    encoder = families.FAMILIES["whisper_encoder"].make()
    assert set(accepted(encoder, {"input_features": torch.zeros(1), "attention_mask": torch.ones(1)})) == {
        "input_features"
    }


def test_padding_is_kept_out_of_what_a_site_learns_from() -> None:
    """Whatever stands in padded positions, the same is recorded for the encoder's and the decoder's sites."""
    model = pico_speech.t5()
    sites = find_sites(model)
    taps = [Tap(site, None, stream_of(model, site.output)) for site in sites]
    batch = {
        "input_ids": torch.randint(3, 60, (2, 6)), "attention_mask": torch.tensor([[1] * 6, [1] * 3 + [0] * 3]),
        "decoder_input_ids": torch.randint(3, 60, (2, 4)),
        "decoder_attention_mask": torch.tensor([[1] * 2 + [0] * 2, [1] * 4]),
    }  # fmt: skip
    other = dict(batch)
    for name, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        other[name] = torch.where(batch[mask].bool(), batch[name], 60 - batch[name])
    recorded = []
    for inputs in (batch, other):
        with torch.no_grad(), observe(model, taps) as traces:
            model(**inputs)
        recorded.append([traces[tap.site.name].rows(RealRows(model, inputs), tap.stream)[0] for tap in taps])
    assert [rows.shape[0] for rows in recorded[0]] == [9, 9, 6, 6]
    for first, second in zip(*recorded, strict=True):
        torch.testing.assert_close(first, second)


def test_a_sequence_that_is_fed_in_chunks_keeps_its_mask() -> None:
    model = families.build("BertModel", "BertConfig", **families._TEXT, chunk_size_feed_forward=4)
    tap = Tap(find_sites(model)[0], None)
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5])
    batch = {"input_ids": torch.randint(3, 60, (2, 8)), "attention_mask": mask}
    with torch.no_grad(), observe(model, [tap]) as traces:
        model(**batch)
    assert len(traces[tap.site.name].x) == 2
    assert traces[tap.site.name].rows(RealRows(model, batch), "main")[0].shape[0] == int(mask.sum())
