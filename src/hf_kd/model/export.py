"""How an `ErasedModel` leaves: folded into a stock model, saved to a folder, written as ONNX, pushed to the Hub."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hf_kd.data.devices import refuse_unreachable_weights
from hf_kd.data.modes import drop_caches
from hf_kd.data.paths import local_path
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import problem_type
from hf_kd.hub.files import save_processor
from hf_kd.methods.records import all_records, folded_erasures

from . import consistency, loading
from .adapters import refuse_adapters
from .configuration import take_name
from .erase import leave_other_base
from .fold import fold_site, save_with_processor
from .saving import atomic_directory, refuse_other_model
from .stored_eraser import refuse_changed_base, refuse_model_there, write_eraser
from .tapped import Tapped

if TYPE_CHECKING:
    from hf_kd.hub.publish import Pushed

    from .onnx_export import ExportedFile


class Export(Tapped):
    """The calls of an `ErasedModel` after which it is somewhere else."""

    def fold(self) -> PreTrainedModel:
        """A stock model of the original class with the erasers written into its head weights.

        Its logits equal the erased model's; its features are NOT erased (hf_kd's threat model calls this a head edit).
        Its labels and columns are those of the model inside: a masked or dropped class is never answered, and still named.

        Returns:
            A copy.

        Raises:
            ValueError: Nothing was erased, an eraser is not linear, there is no weight to take it, or weights are offloaded
                or quantised.
        """
        if not self.is_erased:
            raise InvalidValueError("Nothing has been erased: there is no eraser to fold. Call erase first.")
        refuse_adapters(self)
        refuse_unreachable_weights(self, "fold()")
        drop_caches(self.inner)
        clone = copy.deepcopy(self)
        for site in [*clone.sites, *clone.text_sites]:
            site.detach()
            fold_site(clone.inner, site)
        stock = clone.inner
        take_name(stock)
        if (problem := problem_type(self)) is not None:  # which may have been said of the wrapper alone
            stock.config.problem_type = problem
        stock.config.hf_kd_folded = [erasure.to_dict() for erasure in (*folded_erasures(self.config), *self.erasures)]
        save_with_processor(stock, self)
        return stock

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights, erasers, records and image processor; an interruption leaves what was there before.

        Args:
            save_directory: The folder; what else lies there stays.
            is_main_process: False writes nothing.
            push_to_hub: Refused: `push_to_hub(repo_id)` publishes.
            **kwargs: As in transformers.

        Raises:
            ValueError: The inner class could not be found again, its head is another than its configuration says, or it was
                quantised before it was erased.
            OSError: The place cannot be written to.
        """
        if push_to_hub:
            raise InvalidValueError("save_pretrained does not push; call model.push_to_hub(repo_id).")
        save_directory = local_path(save_directory)
        loading.refuse_unknown_class(self.inner)
        if not is_main_process:
            return
        from hf_kd.hub.document import document, withdraw_card  # reports and figures, which only a saved model needs

        with atomic_directory(save_directory) as folder:
            self.write_checkpoint(folder, **kwargs)
            refuse_other_model(save_directory, folder)
            if self.is_erased:
                document(self, folder, beside=save_directory, add_card=False)
            elif not all_records(self):
                withdraw_card(folder, save_directory)

    def export_onnx(self, output: str | os.PathLike[str], **options: Any) -> list[ExportedFile]:
        """Write the model as ONNX, the erasers inside, once onnxruntime gives the same answers.

        Args:
            output: File name that ends in .onnx; a two-tower model gives one file a tower.
            **options: `dtype`, `images`, `reading`, `tolerance` and `overwrite`; for what they are, and for errors, see
                `hf_kd.model.onnx_export.export_onnx`.

        Returns:
            What was written, and how far it is from the model.
        """
        from .onnx_export import export_onnx  # torch.export takes a second to import

        return export_onnx(self, output, **options)

    def save_eraser(self, save_directory: str | os.PathLike[str], is_main_process: bool = True) -> None:
        """Save the eraser alone, kilobytes beside a base that stays where it is: with records, card and receipt.

        `ErasedModel.from_pretrained(base, eraser=folder)` and `load_eraser` put it on its base again, and on no other. It is
        a layer for a service: whoever has the base has the original model.

        Args:
            save_directory: A folder without a model in it; what else lies there stays. An interruption leaves what was
                there before.
            is_main_process: False writes nothing.

        Raises:
            InvalidValueError: Nothing was erased, the weights are not the base's any more (unlearned, folded, trained or
                converted since), or a model lies in the folder.
            OSError: The place cannot be written to.
        """
        save_directory = local_path(save_directory)
        loading.refuse_unknown_class(self.inner)
        refuse_changed_base(self)
        refuse_model_there(save_directory)
        if not is_main_process:
            return
        from hf_kd.hub.document import document

        with atomic_directory(save_directory) as folder:
            self.write_checkpoint(folder, eraser_only=True)
            document(self, folder, beside=save_directory, add_card=False)

    def write_checkpoint(self, folder: Path, eraser_only: bool = False, **kwargs: Any) -> None:
        """What `save_pretrained` or `save_eraser` keeps, without receipt and card, into a folder of nobody else's.

        Args:
            folder: Where to, which is there.
            eraser_only: Leave the base out.
            **kwargs: As in transformers.

        Raises:
            ValueError: As they do; what does not load again is not written.
        """
        loading.refuse_unknown_class(self.inner)
        refuse_adapters(self)
        leave_other_base(self)
        consistency.refuse_contradictions(self.config)
        consistency.refuse_other_erasers(self)
        if eraser_only:
            write_eraser(self, folder)
            return
        if getattr(self.inner, "hf_quantizer", None) is not None:  # which transformers looks for in the outermost model
            refuse_unreachable_weights(self, "save_pretrained")
        loading.refuse_other_heads(self.inner, [head for tap in self.taps for head in tap.heads])
        if (placed := getattr(self.inner, "hf_device_map", None)) is not None:  # by which what is offloaded is saved
            self.hf_device_map = {f"inner.{name}".rstrip("."): device for name, device in placed.items()}
        super().save_pretrained(folder, **kwargs)
        save_processor(self, folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> Pushed:
        """Publish the model in one commit, load it back and compare bit for bit.

        Args:
            repo_id: USER/NAME.
            **options: Those of `hf_kd.hub.publish.push`, which see for errors, too; `eraser_only=True` publishes what
                `save_eraser` saves.

        Returns:
            Where it went.
        """
        from hf_kd.hub.publish import push  # loads and compares what it published, so it knows this class

        refuse_adapters(self)  # before there is a repository
        if options.get("eraser_only"):
            refuse_changed_base(self)
        return push(self, repo_id, **options)
