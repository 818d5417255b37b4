"""A `Trainer` that publishes as `push_subnet_to_hub` does."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, logging

from ..compat.transformers import push_in_progress
from ..files.atomic import remove_leftovers
from ..files.locks import folder_lock
from ..files.text import read_json, write_text
from ..files.tokenizer import complete_tokenizer
from ..models.portable import make_portable
from ..record.files import CARD_FILE
from ..record.lineage import Lineage
from ..training.careful import CarefulTrainer
from ..training.recording import RecordTraining
from ..vocabulary.of_model import check_has_tokens
from .card import SubnetModelCardData
from .publication import publication_of_folder
from .push import check_architecture, publish
from .repository import Content, Repository
from .saving import describe, remove_adapters, using_cache

logger = logging.get_logger(__name__)

_PUSHING = ".push-"
_JOBS = HfApi()  # its one thread does one push after the other


class PublishingTrainer(CarefulTrainer):
    """A `Trainer` that saves a student with its lineage, and publishes it with its card in single commits.

    `push_to_hub=True` and every `hub_strategy` work as in `Trainer`. A repository with a model of another architecture
    is an error before training, unless `hub_overwrite` is set.
    """

    push_in_progress: Any = None
    _card_data: SubnetModelCardData | None = None
    hub_model_id: Any

    def __init__(self, *args: Any, **kwargs: Any):
        self._recording = RecordTraining()
        super().__init__(*args, **kwargs)
        student: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            check_has_tokens(student.config.vocab_size, self.processing_class, "processing_class")
        make_portable(student)
        self.add_callback(self._recording)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        model: Any = self.accelerator.unwrap_model(self.model)
        with folder_lock(folder):  # no other process writes there
            remove_leftovers(folder)
        card = folder / CARD_FILE
        text = card.read_text(encoding="utf-8") if card.is_file() else None
        make_portable(model)  # `model_init` may have made it
        with using_cache(getattr(model, "config", None)):
            super()._save(output_dir, state_dict)
        complete_tokenizer(self.processing_class, folder)
        if not hasattr(model, "peft_config"):
            remove_adapters(folder)
        elif text is not None:
            write_text(card, text)
        else:
            card.unlink(missing_ok=True)  # peft writes its own
        self._save_lineage(folder)

    def _save_lineage(self, folder: Path) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        if self.state.global_step:
            self._recording.record(self.args, self.state, model)
        Lineage.of(model).save(folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository `args.hub_model_id` and its branch if there are none.

        Raises:
            HubError: if it holds a model of another architecture.
        """
        if not self.is_world_process_zero():
            return
        for left_over in Path(str(self.args.output_dir)).glob(f"{_PUSHING}*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        repository = Repository(name, token=self.args.hub_token if token is None else token)
        repository.qualify()
        repository.prepare(self.args.hub_private_repo if private is None else private, self.args.hub_revision)
        model: Any = self.accelerator.unwrap_model(self.model)
        if not getattr(self.args, "hub_overwrite", False) and not hasattr(model, "peft_config"):
            check_architecture(repository, repository.head(self.args.hub_revision), model.config.to_dict())
        self.hub_model_id, self.push_in_progress = repository.id, None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the student into the output folder.

        Args:
            args: `language`, `license`, `tags` and `model_name`, as in `Trainer`.
            kwargs: the same by name, and `dataset` for names of data sets on the Hub; others have no effect.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        if not any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
            self._save()
        self._save_lineage(folder)  # with what was measured since it was saved
        given = {**dict(zip(("language", "license", "tags", "model_name"), args, strict=False)), **kwargs}
        self._card_data = _card_data(given) or self._card_data
        describe(folder, self._card_data)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the student and its tokenizer with a model card, in one commit.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): commit message.
            blocking (`bool`, *optional*, defaults to `True`): whether to wait until it is published.
            token (`str`, *optional*): token, instead of `args.hub_token`.
            revision (`str`, *optional*): branch, instead of `args.hub_revision`.
            private (`bool`, *optional*): whether a repository that is made is private, instead of
                `args.hub_private_repo`.
            kwargs: as for `create_model_card`.

        Returns:
            `CommitInfo`, or a `Future` of one if not `blocking`; `None` on all processes but the first.

        Raises:
            HubError: if the Hub refuses or cannot be reached; the student is in the output folder all the same.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self._finish_current_push()
        options: dict[str, Any] = {
            "token": token,
            "revision": revision,
            "message": commit_message,
            "card_data": self._card_data,
        }
        if not blocking:
            return _JOBS.run_as_future(self._publish, str(self.args.output_dir), **options)
        return self._publish(str(self.args.output_dir), **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy, under_way = self.args.hub_strategy, self.push_in_progress
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and under_way is not None and not under_way.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_step = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch or 0)}"
        beside = None
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            beside = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
        # Links, since the checkpoint may be removed before it is uploaded.
        folder = tempfile.mkdtemp(dir=str(self.args.output_dir), prefix=_PUSHING)
        ignore = shutil.ignore_patterns(TRAINING_ARGS_NAME)  # it may hold the token
        try:
            shutil.copytree(checkpoint_folder, folder, ignore=ignore, dirs_exist_ok=True, copy_function=_link)
        except OSError as error:  # shutil.Error is one
            logger.warning(f"The checkpoint was not published, training goes on: {error}")
            shutil.rmtree(folder, ignore_errors=True)
            return
        job: Any = _JOBS.run_as_future(self._publish_and_remove, folder, f"Training in progress, {when}", beside)
        if under_way is None or under_way.is_done():
            self.push_in_progress = push_in_progress(job)
        else:
            under_way.jobs.append(job)

    def _publish_and_remove(self, folder: str, message: str, beside: str | None) -> None:
        """Publish the student of a checkpoint, and the whole checkpoint in the folder `beside`, to resume from."""
        again: dict[str, Content] = {}
        if beside is not None:
            paths = [path for path in Path(folder).rglob("*") if path.is_file()]
            again = {f"{beside}/{path.relative_to(folder).as_posix()}": path for path in paths}
            again[f"{beside}/{TRAINER_STATE_NAME}"] = _without_path_of_best(Path(folder) / TRAINER_STATE_NAME)
        card = Path(str(self.args.output_dir)) / CARD_FILE
        try:
            if card.is_file():  # perhaps written by hand
                shutil.copyfile(card, Path(folder) / CARD_FILE)
            describe(folder)
            self._publish(folder, message=message, again=again)
        except Exception as error:  # nobody reads the result of this job
            logger.warning(f"The checkpoint was not published, training goes on: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _publish(
        self,
        folder: str,
        *,
        message: str | None,
        token: str | None = None,
        revision: str | None = None,
        card_data: SubnetModelCardData | None = None,
        again: dict[str, Content] | None = None,
    ) -> Any:
        """Publish a folder, and some of its files `again` under other names."""
        token = self.args.hub_token if token is None else token
        repository = Repository(str(self.hub_model_id), token=token)
        publication = publication_of_folder(folder, repository.id, card_data=card_data, token=token)
        publication.files.update(again or {})
        return publish(
            repository,
            publication,
            revision=revision or self.args.hub_revision,
            overwrite=getattr(self.args, "hub_overwrite", False),
            message=message,
        )


def _card_data(given: dict[str, Any]) -> SubnetModelCardData | None:
    names = {"language": "language", "license": "license", "model_name": "model_name", "dataset": "datasets"}
    values = {ours: given[name] for name, ours in names.items() if given.get(name)}
    tags = given.get("tags") or []
    if tags:
        values["tags"] = [tags] if isinstance(tags, str) else list(tags)
    return SubnetModelCardData(**values) if values else None


def _without_path_of_best(path: Path) -> bytes:
    """A trainer's state that names its best checkpoint without the folder it is in."""
    state = read_json(path)
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    return json.dumps(state, indent=2).encode()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
