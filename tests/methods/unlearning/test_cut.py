"""Where a network is cut: nothing that it keeps beside its weights hides one, and what lies above gets its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_kd import unlearn
from hf_kd.methods.registry import make_unlearning_method
from hf_kd.methods.unlearning.cut import choose_block, cut_behind, gradients_above, only_heads_above
from hf_kd.testing.unlearning import loader, planted_images, trained_model
from tests.helpers import zoo
from tests.methods.unlearning.test_regrow import small_task

FORGET, RETAINED = [2], [0, 1, 3, 4]


def grown(model, method="regrow", **settings):
    forget, retain = loader(*planted_images(FORGET)), loader(*planted_images(RETAINED))
    options = {"epochs": 1, "batch_size": 16} | settings
    return unlearn(model, forget, method, retain=retain, progress=False, allow_unrecognised=True, **options)


def test_what_was_cached_of_a_weight_does_not_hide_that_it_is_kept():
    """Its tables of attention, cached without a graph, were drawn anew below the cut."""
    model, inputs = zoo.build("LevitForImageClassification"), zoo.inputs("LevitForImageClassification", batch=2)
    block = "levit.encoder.stages.0.layers.1"
    expected = cut_behind(copy.deepcopy(model), block, inputs)
    with torch.no_grad():
        model.eval()(**inputs)
    cut = cut_behind(model, block, inputs)
    assert cut == expected
    assert any("attention_biases" in name for name in cut.kept)
    copy.deepcopy(model)  # which a graph among what is cached forbids


class Grouped(nn.Module):
    """A convolution and a GroupNorm behind it."""

    def __init__(self):
        super().__init__()
        self.below = nn.Conv2d(3, 8, 1)
        self.above = nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(inplace=True))

    def forward(self, x):
        return self.above(self.below(x))


def test_a_frozen_block_below_a_group_norm_hands_on_what_has_a_gradient():
    """Else torch ends the process where hidden states are channels-last: this is asked without a step down."""
    model = Grouped().to(memory_format=torch.channels_last)
    model.below.requires_grad_(False)
    images = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    seen = []
    handle = model.above.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain = model(images).detach()
    with gradients_above(model, cut_behind(model, "below", {"x": images})):
        answers = model(images)
    assert torch.equal(answers.detach(), plain)
    assert [hidden.requires_grad for hidden in seen] == [False, True]
    answers.sum().backward()
    assert model.below.weight.grad is None
    model(images)
    assert not seen[-1].requires_grad
    handle.remove()


@pytest.mark.parametrize(
    ("method", "settings"),
    [("regrow", {"cache": "memory"}), ("regrow", {"cache": "none"}), ("eu-k", {"keep": 0.5}), ("eu-k", {"k": 7})],
)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(method, settings, reentrant):
    """Reentrant, the first block above the cut stayed as it was drawn, with a warning of torch alone."""
    plain, checkpointed = (copy.deepcopy(trained_model("transformer")) for _ in range(2))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    before = [vars(m).get("_gradient_checkpointing_func") for m in checkpointed.modules()]
    first, second = (grown(model, method, **settings) for model in (plain, checkpointed))
    assert all(torch.equal(t, second.state_dict()[name]) for name, t in first.state_dict().items())
    after = [vars(m).get("_gradient_checkpointing_func") for m in second.modules()]
    assert [func and func.keywords for func in after] == [func and func.keywords for func in before]


def test_where_nothing_but_the_head_is_new_the_record_says_so():
    model = trained_model("transformer")
    last = [name for name, _ in model.named_modules() if name.startswith("vit.layers.") and name.count(".") == 2][-1]
    told = [grown(model, keep=keep).config.hf_kd_unlearned[-1].get("warnings") or () for keep in (last, 1 / 3)]
    assert [any("features tell the class" in text for text in texts) for texts in told] == [True, False]


@pytest.mark.parametrize(
    ("name", "heads_alone"), [("Dinov2ForImageClassification", True), ("MobileNetV2ForImageClassification", False)]
)
def test_what_is_below_and_unused_is_not_new_and_a_last_convolution_is(name, heads_alone):
    """The former has a token for masked patches, which classification does not read."""
    task = small_task(name)
    cut = choose_block(task, task.find_blocks()[-1])
    assert only_heads_above(task.model, task.heads, cut) == heads_alone


@pytest.mark.parametrize("keep", [[1], {}, 1.0, "1.5"])
@pytest.mark.parametrize("method", ["regrow", "eu-k"])
def test_what_is_no_share_and_no_name_is_refused(method, keep):
    with pytest.raises(ValueError, match=f"{method}: keep="):
        make_unlearning_method(method, keep=keep)
