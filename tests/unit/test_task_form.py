"""The codec of a task: its text, what it asks of rules and artifact, and what is refused when a task is set up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.aggregation.suitability import FAMILIES, UNSUITABLE, Family, objection
from coordinator.authoring.output_layer import output_positions
from coordinator.authoring.zoo import build, network
from coordinator.codec_choice import INT8, CodecChoice, parse_codec
from coordinator.demo import options
from coordinator.ledger import miner_set
from coordinator.setup import default_params
from coordinator.task_form import check_task, fit_task
from edge_sdk.device import encoding
from edge_sdk.errors import ConfigError, TrainingError
from edge_sdk.protocol.messages import Codec
from edge_sdk.protocol.wire import from_bytes, to_bytes
from edge_sdk.training.codecs.reading import UpdateForm
from tools import vector_examples as ex

WHOLE, _ = build("mlp", (8,), 3, batch=4, seed=0)
OUTPUT, _ = build("mlp", (8,), 3, batch=4, seed=0, is_output_only=True)
TEXTS = ("int8", "int16", "topk:0.125", "int4", "sign", "output", "spsa")


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    choice = parse_codec(text)
    assert str(choice) == text
    assert choice.is_output_only == (text == "output")
    assert (choice.top_share_q16 == 8_192) == (text == "topk:0.125")


@pytest.mark.parametrize(
    "text", ["", "int2", "topk", "topk:", "topk:0", "topk:-0.1", "topk:1.5", "topk:nan", "topk:inf", "sign:0.5", "INT8"]
)
def test_texts_that_name_no_codec(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--codec {text}: expected"):
        parse_codec(text)


@pytest.mark.parametrize("text", TEXTS)
def test_rules_of_a_task_go_through_genesis(text: str) -> None:
    choice = parse_codec(text)
    artifact = OUTPUT if choice.is_output_only else WHOLE
    rules = fit_task(default_params(batch=4, codec=choice), artifact)
    genesis = replace(ex.genesis(), params=rules)
    assert from_bytes(type(genesis), to_bytes(genesis)) == genesis
    miner_set.check_genesis(genesis)
    check_task(rules, artifact)
    encoding.check_form(artifact, rules)
    form = UpdateForm.of_task(rules)
    assert form.codec is choice.codec
    assert form.carried == ((4, 5) if choice.is_output_only else None)
    assert form.top_share == (0.125 if text.startswith("topk") else 1.0)


def test_a_genesis_of_before_keeps_its_bytes() -> None:
    """The list of tensors and the share stand in no genesis that does without them."""
    rules = fit_task(default_params(batch=4, codec=INT8), WHOLE)
    assert (rules.carried, rules.top_share_q16) == (None, None)
    frozen = fit_task(rules, OUTPUT)
    assert frozen.carried == (4, 5)
    assert len(to_bytes(replace(ex.genesis(), params=frozen))) > len(to_bytes(replace(ex.genesis(), params=rules)))


def test_an_artifact_that_trains_other_tensors_is_refused() -> None:
    rules = fit_task(default_params(batch=4), OUTPUT)
    with pytest.raises(ConfigError, match="does not train the tensors"):
        check_task(rules, WHOLE)
    with pytest.raises(TrainingError, match="does not train the tensors"):
        encoding.check_form(WHOLE, rules)
    check_task(default_params(batch=4), OUTPUT)  # a task of before: all tensors travel, frozen ones as zeros


def test_output_only_wants_the_output_layer_alone() -> None:
    rules = default_params(batch=4, codec=CodecChoice(Codec.INT8_OUTPUT))
    with pytest.raises(ConfigError, match="--trainable last:1"):
        fit_task(rules, WHOLE)
    fit_task(rules, OUTPUT)
    assert output_positions(network("lenet", (1, 28, 28), 10)) == (8, 9)


def test_spsa_has_room_for_so_many_steps() -> None:
    rules = default_params(batch=4, codec=CodecChoice(Codec.SPSA))
    fit_task(rules, WHOLE)
    with pytest.raises(ConfigError, match="33 local steps: expected at most 32"):
        fit_task(replace(rules, local_steps=33), WHOLE)


def test_rules_that_lose_their_meaning_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(objection(Family.MEAN, codec) is None for codec in Codec)
    assert all(objection(family, Codec.INT8_DENSE) is None for family in Family)
    assert {codec for _, codec in UNSUITABLE} == {Codec.INT8_TOPK, Codec.SPSA}
    monkeypatch.setitem(FAMILIES, "fedbuff", Family.ORDER)
    rules = default_params(batch=4, codec=parse_codec("topk:0.1"))
    with pytest.raises(ConfigError, match="method fedbuff with codec INT8_TOPK: most values of an update are not sent"):
        miner_set.check_genesis(replace(ex.genesis(), params=rules))


def test_the_demo_refuses_an_attack_that_no_message_can_say() -> None:
    with pytest.raises(ConfigError, match="no message of directions"):
        options.parse(["--codec", "spsa", "--byzantine", "nullifier:1"])
    assert options.parse(["--codec", "spsa", "--byzantine", "scaled:1"]).codec.codec is Codec.SPSA
    with pytest.raises(ConfigError, match="--codec zip"):
        options.parse(["--codec", "zip"])
